// Files of bases: what is written comes back, old files open, damage is one clear error.
#include <functional>

#include "base/linalg.h"
#include "base/random.h"
#include "cache/basis.h"
#include "formats/safetensors.h"
#include "testing.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

// E = S Q diag(1/σ), D = diag(σ) Qᵀ S⁻¹, with spreads σ from `spread` down to 1 / spread.
HeadBasis random_basis(int d, std::vector<RowFormat> formats, double spread, Random& random) {
    size_t n = size_t(d);
    Matrix A(n, n), S = identity(n), S_inverse = S, sigma = S, sigma_inverse = S;
    for (double& x : A.data) x = random.normal();
    for (size_t i = 0; i < n; i++) {
        S(i, i) = std::pow(100, random.uniform() - 0.5), S_inverse(i, i) = 1 / S(i, i);
        sigma(i, i) = std::pow(spread, 1 - 2 * double(i) / double(n - 1));
        sigma_inverse(i, i) = 1 / sigma(i, i);
    }
    Matrix Q = qr(A).Q;
    HeadBasis one{std::move(formats),
                  {},
                  to_floats(Q),
                  to_floats(times(times(S, Q), sigma_inverse)),
                  to_floats(times(times(sigma, transpose(Q)), S_inverse))};
    for (size_t i = 0; i < n; i++) one.weight.push_back(float(random.uniform()));
    return one;
}

Bases random_bases(const Config& c, double spread, bool joint = false) {
    Random random(3);
    Bases bases;
    bases.ages = {40, 90}, bases.sinks = 2, bases.recent = 33;
    bases.metadata["method"] = "stiefel";
    RowFormat codes;
    codes.count = {0, 0, 0, 0, 0, 0, 0, 8};
    std::vector<std::vector<RowFormat>> formats = {
        {RowFormat::whole(8), RowFormat::whole(4), codes},
        {codes, codes, RowFormat::whole(0)},
        {RowFormat::whole(8), codes, codes}};
    size_t next = 0;
    for (int l = 0; l < c.L; l++) {
        Bases::Layer& layer = bases.layer.emplace_back();
        layer.rotated = l == 1;
        for (auto* side : {&layer.k, &layer.v})
            for (int g = 0; g < c.G; g++)
                side->push_back(random_basis(c.d, formats[next++ % 3], spread, random));
        layer.k[0].mean.assign(size_t(c.d), float(0.5 + l));  // the other heads have none
        layer.joint = joint && l == 1;
        if (layer.joint) layer.v = {random_basis(c.G * c.d, formats[0], spread, random)};
    }
    return bases;
}

bool same(const Bases& a, const Bases& b) {
    bool equal = a.layer.size() == b.layer.size() && a.ages == b.ages && a.sinks == b.sinks &&
                 a.recent == b.recent;
    for (size_t l = 0; equal && l < a.layer.size(); l++) {
        equal = equal && a.layer[l].rotated == b.layer[l].rotated &&
                a.layer[l].joint == b.layer[l].joint;
        for (auto side : {&Bases::Layer::k, &Bases::Layer::v}) {
            const std::vector<HeadBasis>&x = a.layer[l].*side, &y = b.layer[l].*side;
            equal = equal && x.size() == y.size();
            for (size_t g = 0; equal && g < x.size(); g++)
                equal = x[g].format == y[g].format && x[g].weight == y[g].weight &&
                        x[g].q == y[g].q && x[g].encode == y[g].encode &&
                        x[g].decode == y[g].decode && x[g].mean == y[g].mean;
        }
    }
    return equal;
}

// The same file as another version or with other metadata. drop: tensors whose names end so.
void rewrite(const std::string& from, const std::string& to, const std::string& drop,
             const std::map<std::string, std::string>& changes) {
    SafeTensors file = SafeTensors::open_file(from);
    std::vector<NamedTensor> tensors;
    for (const auto& [name, info] : file.tensors)
        if (drop.empty() || !name.ends_with(drop))
            tensors.push_back({name, file.take(name, info.shape, "")});
    std::map<std::string, std::string> metadata = file.metadata;
    for (const auto& [key, value] : changes)
        if (value.empty())
            metadata.erase(key);
        else
            metadata[key] = value;
    write_safetensors(to, tensors, metadata);
}

std::string error_of(const std::string& path, const Config& config) {
    try {
        Bases::open(path, config, 42);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

struct Saved {
    Scratch scratch;
    Config config;
    std::string path = scratch.path("bases");

    Saved() {
        write_tiny_model({.why = ""}, scratch.folder.string());
        config = Config::open(scratch.folder.string());
    }
};

}  // namespace

TEST_SUITE_BEGIN("cache");

TEST_CASE("a bases file comes back as it was, with spreads of four decades as well") {
    Saved saved;
    for (double spread : {1.0, 1e4}) {
        Bases bases = random_bases(saved.config, spread);
        bases.save(saved.path, 42);
        Bases again = Bases::open(saved.path, saved.config, 42);
        CHECK(same(again, bases));
        CHECK(again.metadata.at("method") == "stiefel");
        CHECK(again.hash(1) == bases.hash(1));
        bases.layer[0].k[0].format[0].count[0] -= 4;
        CHECK(again.hash(1) != bases.hash(1));
        bases = again, bases.layer[1].k[0].mean[3] += 1;
        CHECK(again.hash(1) != bases.hash(1));
    }
    CHECK_THROWS_WITH_AS(Bases::open(saved.path, saved.config, 43),
                         doctest::Contains("another model"), Error);
}

TEST_CASE("joint values of a layer come back as one basis; a file that does not say has heads") {
    Saved saved;
    Bases joint = random_bases(saved.config, 1, true), heads = random_bases(saved.config, 1);
    joint.save(saved.path, 42);
    CHECK(same(Bases::open(saved.path, saved.config, 42), joint));
    CHECK(Bases::open(saved.path, saved.config, 42).hash(1) == joint.hash(1));
    rewrite(saved.path, saved.path + "2", "", {{"values", "head,both"}});
    CHECK(error_of(saved.path + "2", saved.config).find("expected head or joint") != std::string::npos);
    rewrite(saved.path, saved.path + "2", "", {{"values", "joint,joint"}});
    CHECK(error_of(saved.path + "2", saved.config) != "");
    rewrite(saved.path, saved.path + "2", "", {{"values", ""}});
    CHECK(error_of(saved.path + "2", saved.config) != "");
    heads.save(saved.path, 42);
    rewrite(saved.path, saved.path + "2", "", {{"values", ""}});
    CHECK(same(Bases::open(saved.path + "2", saved.config, 42), heads));
}

TEST_CASE("bases of version 2 have no means") {
    Saved saved;
    Bases bases = random_bases(saved.config, 1);
    bases.save(saved.path, 42);
    rewrite(saved.path, saved.path + "2", ".mean", {{"version", "2"}});
    for (Bases::Layer& layer : bases.layer) layer.k[0].mean.clear();
    CHECK(same(Bases::open(saved.path + "2", saved.config, 42), bases));
    rewrite(saved.path, saved.path + "2", ".mean", {});
    CHECK(error_of(saved.path + "2", saved.config).find("layers.0.k.mean") != std::string::npos);
}

TEST_CASE("bases of version 3 had one mean for rotated keys at all positions, and are refused") {
    Saved saved;
    Bases bases = random_bases(saved.config, 1);
    for (bool rotated : {false, true}) {
        bases.layer[1].rotated = rotated, bases.layer[0].rotated = false;
        bases.save(saved.path, 42);
        rewrite(saved.path, saved.path + "3", "", {{"version", "3"}});
        std::string error = error_of(saved.path + "3", saved.config);
        CHECK((error.find("learn the bases again") != std::string::npos) == rotated);
        if (!rotated) CHECK(same(Bases::open(saved.path + "3", saved.config, 42), bases));
    }
}

TEST_CASE("bases of version 1 open as whole rows of one age") {
    Saved saved;
    Bases bases = random_bases(saved.config, 1);
    bases.save(saved.path, 42);
    auto version_1 = [&](const std::string& ranks_k) {
        rewrite(saved.path, saved.path + "1", ".weight",
                {{"version", "1"},
                 {"ages", ""},
                 {"formats_k", ""},
                 {"formats_v", ""},
                 {"ranks_k", ranks_k},
                 {"ranks_v", "[[8,8],[0,4]]"}});
    };
    REQUIRE(saved.config.L == 2);
    REQUIRE(saved.config.G == 2);
    version_1("[[4,8],[0,8]]");
    Bases old = Bases::open(saved.path + "1", saved.config, 42);
    for (Bases::Layer& layer : bases.layer)
        for (auto* side : {&layer.k, &layer.v})
            for (HeadBasis& head : *side)
                head.weight.assign(size_t(saved.config.d), 1.0f), head.mean.clear();
    const int ranks[2][4] = {{4, 8, 8, 8}, {0, 8, 0, 4}};
    for (size_t l = 0; l < 2; l++)
        for (size_t g = 0; g < 2; g++) {
            bases.layer[l].k[g].format = {RowFormat::whole(ranks[l][g])};
            bases.layer[l].v[g].format = {RowFormat::whole(ranks[l][2 + g])};
        }
    bases.ages.clear();
    CHECK(same(old, bases));
    version_1("[[4,8],[0,16]]");
    CHECK(error_of(saved.path + "1", saved.config).find("ranks_k") != std::string::npos);
    version_1("[[4,8],[0,6]]");
    CHECK(error_of(saved.path + "1", saved.config).find("multiple of 4") != std::string::npos);
}

TEST_CASE("every damage of a bases file is one clear error") {
    Saved saved;
    Bases bases = random_bases(saved.config, 1e4);
    bases.save(saved.path, 42);
    std::string intact = read_text(saved.path);
    for (size_t length :
         {size_t(0), size_t(7), size_t(100), intact.size() / 2, intact.size() - 1}) {
        AtomicFile damaged(saved.path + "short");
        damaged.write(intact.substr(0, length));
        damaged.commit();
        CHECK(!error_of(saved.path + "short", saved.config).empty());
    }
    struct Damage {
        const char *why, *says;
        std::function<void(Bases&)> apply;
    };
    auto first = [](Bases& b) -> HeadBasis& { return b.layer[0].k[0]; };
    const Damage damages[] = {
        {"a basis that is not orthonormal", "not orthonormal",
         [&](Bases& b) { first(b).q[3] += 0.5f; }},
        {"NaN in a basis", "an element of q", [](Bases& b) { b.layer[1].v[1].q[0] = NaN; }},
        {"infinity in decode", "an element of decode", [&](Bases& b) { first(b).decode[1] = INFINITY; }},
        {"infinity in encode", "an element of encode", [&](Bases& b) { first(b).encode[1] = -INFINITY; }},
        {"decode that is no inverse", "not the inverse",
         [&](Bases& b) { first(b).decode[0] *= 1.01f; }},
        {"the same where spreads are small", "not the inverse",
         [&](Bases& b) { first(b).decode.back() *= 1.01f; }},
        {"encode that is no inverse", "not the inverse", [&](Bases& b) { first(b).encode[7] = 0; }},
        {"a weight below 0", "a weight is", [&](Bases& b) { first(b).weight[2] = -1; }},
        {"NaN in a weight", "a weight is", [&](Bases& b) { first(b).weight[2] = NaN; }},
        {"NaN in a mean", "its mean is", [&](Bases& b) { first(b).mean[1] = NaN; }},
        {"more coordinates than there are", "formats_k",
         [&](Bases& b) {
             first(b).format[1].count = {4, 8};
         }},
        {"a count of no sense", "formats_k",
         [&](Bases& b) { first(b).format[0].count[0] = uint16_t(-4); }},
        {"elements that are no multiple of 4", "multiple of 4",
         [&](Bases& b) { first(b).format[2].count = {3}; }},
        {"codes that are no multiple of 8", "multiple of 8",
         [&](Bases& b) {
             first(b).format[2].count = {0, 4};
         }},
        {"a format too few", "list of 3 formats", [&](Bases& b) { first(b).format.pop_back(); }},
        {"ages that do not grow", "ages", [](Bases& b) { b.ages[1] = b.ages[0]; }},
        {"an age within the window", "ages", [](Bases& b) { b.ages[0] = b.recent; }},
        {"a layer too few", "formats of 2 layers", [](Bases& b) { b.layer.pop_back(); }},
        {"a head too many", "formats_k", [](Bases& b) { b.layer[0].k.push_back(b.layer[0].k[0]); }},
    };
    for (const Damage& damage : damages) {
        CAPTURE(std::string(damage.why));
        Bases bad = bases;
        damage.apply(bad);
        bad.save(saved.path + "bad", 42);
        std::string message = error_of(saved.path + "bad", saved.config);
        CAPTURE(message);
        CHECK(message.find(damage.says) != message.npos);
    }
    const std::pair<const char*, const char*> texts[] = {
        {"version", "5"},    {"ages", "[40,90,1,2,3]"}, {"ages", "40"},  {"ages", ""},
        {"formats_k", "[]"}, {"formats_v", "{}"},       {"window", "4"}, {"window", "4,-1"},
        {"window", "4,99999999999"}, {"keys", "pre,post,"}, {"keys", "pre"}, {"keys", "pre,\x1b[31m"},
        {"fingerprint", "\x1b[2J"}};
    for (auto [key, text] : texts) {
        CAPTURE(std::string(key));
        rewrite(saved.path, saved.path + "bad", "", {{key, text}});
        std::string message = error_of(saved.path + "bad", saved.config);
        CHECK(message.find(key) != std::string::npos);
        CHECK(message.find('\x1b') == std::string::npos);  // nothing that a terminal would obey
    }
    std::string keys = "[[4,0,0,0,0,0,0,0]]";
    for (int g = 1; g < 33; g++) keys += ",[[4,0,0,0,0,0,0,0]]";
    rewrite(saved.path, saved.path + "wide", "",
            {{"window", "4,64"}, {"ages", "[]"}, {"values", "joint"}, {"keys", "pre"},
             {"formats_k", "[[" + keys + "]]"}, {"formats_v", "[[[[16,0,0,0,2048,0,0,0]]]]"}});
    CHECK_THROWS_WITH_AS(
        BasesFormats::of(SafeTensors::open_file(saved.path + "wide"), saved.path, 33, 64),
        doctest::Contains("formats_v: layer 0 head 0: a row of codes keeps 2064 coordinates"), Error);
    rewrite(saved.path, saved.path + "bad", "1.v.weight", {});
    CHECK(error_of(saved.path + "bad", saved.config).find("layers.1.v.weight") !=
          std::string::npos);
}

TEST_SUITE_END();
