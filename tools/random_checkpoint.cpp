// random_checkpoint CONFIG.json|FOLDER OUT_FOLDER [--seed N] [--dtype bf16|f16|f32] [--shards N]
// [--std X] Writes OUT_FOLDER/config.json, a copy, and random weights of its shapes next to it.
#include "../tests/random_checkpoint.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/check.h"
#include "base/file.h"
#include "model/config.h"

using namespace stief;

static const char USAGE[] =
    "usage: random_checkpoint CONFIG.json|FOLDER OUT_FOLDER [--seed N] [--dtype bf16|f16|f32]\n"
    "                         [--shards N] [--std X]\n";

static DType dtype_named(const std::string& name) {
    for (DType dtype : {DType::F32, DType::F16, DType::BF16})
        if (name == name_of(dtype)) return dtype;
    fail("--dtype %s: expected bf16, f16 or f32", name.c_str());
}

static int run(int argc, char** argv) {
    RandomCheckpoint options;
    std::string paths[2];
    int path_count = 0;
    for (int i = 1; i < argc; i++) {
        std::string flag = argv[i];
        if (flag[0] != '-' && path_count < 2) {
            paths[path_count++] = flag;
            continue;
        }
        check(i + 1 < argc, "%s: unknown, or its value is missing\n%s", flag.c_str(), USAGE);
        const char* value = argv[++i];
        if (flag == "--seed") options.seed = std::strtoull(value, nullptr, 10);
        else if (flag == "--dtype") options.dtype = dtype_named(value);
        else if (flag == "--shards") options.shards = std::atoi(value);
        else if (flag == "--std") options.std = std::strtod(value, nullptr);
        else fail("%s: unknown\n%s", flag.c_str(), USAGE);
    }
    check(path_count == 2, "expected two paths\n%s", USAGE);

    std::string text =
        read_text(folder_exists(paths[0]) ? join(paths[0], "config.json") : paths[0]);
    mkdir(paths[1].c_str(), 0777);   // where it is there already, or cannot be, the next line tells
    AtomicFile copy(join(paths[1], "config.json"));
    copy.write(text);
    copy.commit();
    write_random_checkpoint(Config::open(paths[1]), options);
    return 0;
}

int main(int argc, char** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
