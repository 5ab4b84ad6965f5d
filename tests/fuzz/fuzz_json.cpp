// Any bytes: the reader takes them or throws Error. What it takes must come back from quote().
#include <cstdlib>

#include "base/check.h"
#include "base/json.h"

using namespace stief;

static void visit(const Json& json) {
    if (json.kind == Json::String && Json::parse(quote(json.text), "again").text != json.text)
        abort();
    try {
        if (json.kind == Json::Number) json.number("n"), json.integer("n", INT64_MIN, INT64_MAX);
    } catch (const Error&) {   // 1e999, 0.5
    }
    for (const Json& item : json.items) visit(item);
    for (const auto& [key, value] : json.members) {
        if (json.find(key) != &value) abort();
        visit(value);
    }
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
    try {
        visit(Json::parse({reinterpret_cast<const char*>(data), size}, "fuzz"));
    } catch (const Error&) {
    }
    return 0;
}
