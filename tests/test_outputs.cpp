// Nothing is written over that is not a run's own: inputs, models, folders, the other output.
#include "commands/outputs.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "program.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

void put(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
}

// A text, a link to it, another name of it, and a model folder.
struct Place {
    Scratch scratch;
    std::string model = path("model"), text = path("text");

    Place() {
        std::filesystem::create_directory(model);
        for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"})
            put(model + "/" + name, "what the model needs");
        put(text, "a text");
        REQUIRE(symlink("text", path("link").c_str()) == 0);
        REQUIRE(link(text.c_str(), path("twin").c_str()) == 0);
        REQUIRE(symlink("model/model.safetensors", path("weights").c_str()) == 0);
    }
    std::string path(const std::string& name) const { return scratch.path(name); }

    // What is said of -o and --report; "" where they may be written.
    std::string refusal(const std::string& bases, const std::string& report = "") const {
        try {
            check_outputs({{{"-o", bases}, Output::Bases}, {{"--report", report}, Output::Page}},
                          {{"the text", text}, {"--holdout", ""}}, model);
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }
};

}  // namespace

TEST_SUITE_BEGIN("commands");

TEST_CASE("an output that is an input, by whatever name, is refused before any work") {
    Place place;
    for (const char* name : {"text", "link", "twin", "model/../text"}) {
        CAPTURE(std::string(name));
        CHECK(place.refusal(place.path(name)).find("is the text, which this run reads") !=
              std::string::npos);
    }
    CHECK(place.refusal(place.path("new")) == "");
    CHECK(place.refusal("-").find("-o -: expected the name of a file") == 0);
    CHECK(read_text(place.text) == "a text");
}

TEST_CASE("two outputs of one name, there or not, are refused") {
    Place place;
    put(place.path("there"), "");
    for (const char* name : {"new", "there"}) {
        std::string one = place.path(name), other = place.path(std::string("model/../") + name);
        CHECK(place.refusal(one, other).find("are one file") != std::string::npos);
    }
    CHECK(place.refusal("/dev/null", "/dev/null") == "");
    CHECK(place.refusal(place.path("a"), place.path("b")) == "");
}

TEST_CASE("the model's own files are refused, also those it could have; others beside them not") {
    Place place;
    for (const char* name :
         {"model/model.safetensors", "model/config.json", "weights",
          "model/model-00001-of-00002.safetensors", "model/chat_template.jinja"}) {
        CAPTURE(std::string(name));
        CHECK(place.refusal(place.path(name)).find("would be a file of the model") !=
              std::string::npos);
    }
    CHECK(place.refusal(place.path("model/bases.safetensors")) == "");
    CHECK(place.refusal(place.path("model.safetensors")) == "");
}

TEST_CASE("what exists is replaced where it is of the kind that is written, and nothing else is") {
    Place place;
    put(place.path("page"), "<!doctype html><html>");
    put(place.path("notes"), "not to be lost");
    CHECK(place.refusal("", place.path("page")) == "");
    CHECK(place.refusal("", place.path("notes")).find("is no HTML page") != std::string::npos);
    CHECK(place.refusal(place.path("notes")).find("is no file of bases") != std::string::npos);
    CHECK(place.refusal(place.model).find("is a folder") != std::string::npos);
    CHECK(place.refusal(place.path("no/such")).find("cannot write") != std::string::npos);
}

TEST_CASE("the program refuses such outputs with one line and status 1, and changes nothing") {
    Scratch scratch;
    std::string model = scratch.path("m"), ids = scratch.path("ids");
    std::filesystem::create_directory(model);
    write_tiny_model({.why = "outputs"}, model);
    put(ids, "1 2 3");
    std::string weights = read_text(model + "/model.safetensors");
    for (const std::string& output : {model + "/model.safetensors", ids}) {
        Ran ran = run("logits " + model + " --ids-file " + ids + " -o " + output);
        CHECK(ran.status == 1);
        CHECK(ran.err.find("error: -o ") == 0);
        CHECK(std::count(ran.err.begin(), ran.err.end(), '\n') == 1);
    }
    std::string err = scratch.path("err");
    std::string command = "'" + program() + "' logits " + model + " --ids-file - -o " + ids +
                          " < " + ids + " 2> " + err;
    CHECK(WEXITSTATUS(std::system(command.c_str())) == 1);
    CHECK(read_text(err).find("standard input, which this run reads") != std::string::npos);
    CHECK(read_text(model + "/model.safetensors") == weights);
    CHECK(read_text(ids) == "1 2 3");
}

TEST_SUITE_END();
