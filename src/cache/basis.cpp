#include "cache/basis.h"

#include <cmath>
#include <cstring>

#include "base/hash.h"
#include "base/json_writer.h"
#include "base/linalg.h"
#include "formats/safetensors.h"

namespace stief {

// A basis that was rounded to float32 once: ‖QᵀQ − I‖_F stays below d · 2⁻²³ ≈ 2e-5; damage is
// larger.
constexpr double ORTHONORMAL = 1e-4;
// E D = I in float32 with a metric whose condition is at most 1e4.
constexpr double INVERSE = 1e-2;

static std::vector<float> unit_matrix(int d) {
    std::vector<float> I(size_t(d) * size_t(d), 0.0f);
    for (int i = 0; i < d; i++) I[size_t(i) * size_t(d) + size_t(i)] = 1.0f;
    return I;
}

Bases Bases::identity(const Config& config, int rank) {
    std::vector<float> I = unit_matrix(config.d);
    HeadBasis head{rank, I, I, I};
    std::vector<HeadBasis> heads(size_t(config.G), head);
    Bases bases;
    bases.layer.assign(size_t(config.L), {true, heads, heads});
    return bases;
}

size_t Bases::coordinates_per_token() const {
    size_t sum = 0;
    for (const LayerBasis& one : layer)
        for (const std::vector<HeadBasis>* side : {&one.k, &one.v})
            for (const HeadBasis& head : *side) sum += size_t(head.r);
    return sum;
}

uint64_t Bases::hash(uint64_t seed) const {
    Hash hash;
    for (uint64_t word : {seed, uint64_t(sinks), uint64_t(recent)}) hash.add(word);
    for (const LayerBasis& one : layer) {
        hash.add(uint64_t(one.rotated));
        for (const std::vector<HeadBasis>* side : {&one.k, &one.v})
            for (const HeadBasis& head : *side) {
                hash.add(uint64_t(head.r));
                hash.add_bytes(head.encode.data(), head.encode.size() * sizeof(float));
            }
    }
    return hash.value();
}

// ---- writing
// --------------------------------------------------------------------------------------

static std::string ranks_json(const Bases& bases, std::vector<HeadBasis> LayerBasis::*side) {
    JsonWriter json;
    json.begin_array();
    for (const LayerBasis& layer : bases.layer) {
        json.begin_array();
        for (const HeadBasis& head : layer.*side) json.add("", head.r);
        json.end_array();
    }
    return json.end_array().text;
}

void Bases::save(const std::string& path, uint64_t fingerprint) const {
    std::vector<std::vector<float>> stacked;
    std::vector<NamedTensor> tensors;
    std::string keys;
    for (size_t l = 0; l < layer.size(); l++) {
        keys += layer[l].rotated ? (l ? ",post" : "post") : (l ? ",pre" : "pre");
        for (auto [letter, side] : {std::pair{'k', &layer[l].k}, std::pair{'v', &layer[l].v}})
            for (auto [name, field] :
                 {std::pair{"q", &HeadBasis::q}, std::pair{"encode", &HeadBasis::encode},
                  std::pair{"decode", &HeadBasis::decode}}) {
                std::vector<float> all;
                for (const HeadBasis& head : *side)
                    all.insert(all.end(), (head.*field).begin(), (head.*field).end());
                size_t G = side->size(), d = size_t(std::lround(std::sqrt(double(all.size() / G))));
                stacked.push_back(std::move(all));
                tensors.push_back({format("layers.%zu.%c.%s", l, letter, name),
                                   {nullptr, DType::F32, {G, d, d}}});
            }
    }
    for (size_t i = 0; i < tensors.size(); i++) tensors[i].tensor.data = stacked[i].data();
    std::map<std::string, std::string> all = metadata;
    all["format"] = "stief-bases";
    all["version"] = "1";
    all["fingerprint"] = format("%016llx", static_cast<unsigned long long>(fingerprint));
    all["keys"] = keys;
    all["window"] = format("%d,%d", sinks, recent);
    all["ranks_k"] = ranks_json(*this, &LayerBasis::k);
    all["ranks_v"] = ranks_json(*this, &LayerBasis::v);
    write_safetensors(path, tensors, all);
}

// ---- reading
// --------------------------------------------------------------------------------------

namespace {

struct Reader {
    const std::string& path;
    const Config& config;
    const SafeTensors& file;

    const std::string& text(const std::string& key) const {
        auto found = file.metadata.find(key);
        if (found == file.metadata.end())
            fail("%s: its metadata has no \"%s\": not a bases file of stief calibrate",
                 path.c_str(), key.c_str());
        return found->second;
    }

    void ranks(const std::string& key, Bases& bases,
               std::vector<HeadBasis> LayerBasis::*side) const {
        std::string where = path + ": " + key;
        Json rows = Json::parse(text(key), where);
        check(rows.kind == Json::Array && rows.items.size() == bases.layer.size(),
              "%s: expected ranks of %zu layers", where.c_str(), bases.layer.size());
        for (size_t l = 0; l < bases.layer.size(); l++) {
            std::vector<HeadBasis>& heads = bases.layer[l].*side;
            const Json& row = rows.items[l];
            check(row.kind == Json::Array && row.items.size() == heads.size(),
                  "%s: expected %zu heads in layer %zu", where.c_str(), heads.size(), l);
            for (size_t g = 0; g < heads.size(); g++) {
                heads[g].r = int(row.items[g].integer(where, 0, config.d));
                check(heads[g].r % 4 == 0 || heads[g].r == config.d,
                      "%s: rank %d of layer %zu is no multiple of 4", where.c_str(), heads[g].r, l);
            }
        }
    }

    void matrices(size_t l, char letter, std::vector<HeadBasis>& heads) const {
        size_t G = size_t(config.G), d = size_t(config.d);
        for (auto [name, field] :
             {std::pair{"q", &HeadBasis::q}, std::pair{"encode", &HeadBasis::encode},
              std::pair{"decode", &HeadBasis::decode}}) {
            Tensor t = file.take(format("layers.%zu.%c.%s", l, letter, name), {G, d, d},
                                 format("the model has %zu kv heads of %zu", G, d));
            check(t.dtype == DType::F32, "%s: layers.%zu.%c.%s is %s, expected f32", path.c_str(),
                  l, letter, name, name_of(t.dtype));
            for (size_t g = 0; g < G; g++) {
                std::vector<float>& to = heads[g].*field;
                to.resize(d * d);
                std::memcpy(to.data(), static_cast<const char*>(t.data) + g * d * d * 4, d * d * 4);
            }
        }
        for (size_t g = 0; g < G; g++)
            verify(heads[g], format("%s: layers.%zu.%c head %zu", path.c_str(), l, letter, g));
    }

    // ‖AᵀB − I‖ or ‖A B − I‖ within tolerance; NaN is not.
    void verify(const HeadBasis& head, const std::string& where) const {
        size_t d = size_t(config.d);
        Matrix Q(d, d), E(d, d), D(d, d);
        Q.data.assign(head.q.begin(), head.q.end());
        E.data.assign(head.encode.begin(), head.encode.end());
        D.data.assign(head.decode.begin(), head.decode.end());
        Matrix QtQ = transposed_times(Q, Q), ED = times(E, D);
        add_scaled(QtQ, -1, stief::identity(d));
        add_scaled(ED, -1, stief::identity(d));
        check(norm(QtQ) <= ORTHONORMAL,
              "%s: its basis is not orthonormal (off by %.2g): the file is damaged", where.c_str(),
              norm(QtQ));
        check(norm(ED) <= INVERSE,
              "%s: decode is not the inverse of encode (off by %.2g): the file is "
              "damaged",
              where.c_str(), norm(ED));
    }
};

void parse_window(const std::string& text, const std::string& path, Bases& bases) {
    int used = 0;
    bool ok = std::sscanf(text.c_str(), "%d,%d%n", &bases.sinks, &bases.recent, &used) == 2 &&
              size_t(used) == text.size() && bases.sinks >= 0 && bases.recent >= 0;
    check(ok, "%s: window is \"%.40s\", expected SINKS,RECENT", path.c_str(), text.c_str());
}

}  // namespace

Bases Bases::open(const std::string& path, const Config& config, uint64_t fingerprint) {
    SafeTensors file = SafeTensors::open_file(path);
    Reader reader{path, config, file};
    check(reader.text("format") == "stief-bases" && reader.text("version") == "1",
          "%s: expected bases of format version 1, found \"%.40s\" version \"%.40s\"", path.c_str(),
          reader.text("format").c_str(), reader.text("version").c_str());
    std::string want = format("%016llx", static_cast<unsigned long long>(fingerprint));
    check(reader.text("fingerprint") == want,
          "%s: these bases were learned for another model (%.40s; its fingerprint is %.20s, that "
          "of %s is "
          "%s)",
          path.c_str(),
          file.metadata.count("model") ? file.metadata.at("model").c_str() : "unnamed",
          reader.text("fingerprint").c_str(), config.folder.c_str(), want.c_str());

    Bases bases;
    std::vector<HeadBasis> heads(size_t(config.G), HeadBasis{});
    bases.layer.assign(size_t(config.L), {true, heads, heads});
    bases.metadata = file.metadata;
    parse_window(reader.text("window"), path, bases);

    std::string keys = reader.text("keys") + ",";
    for (size_t l = 0, at = 0; l < bases.layer.size(); l++) {
        size_t comma = keys.find(',', at);
        std::string kind = comma == keys.npos ? "" : keys.substr(at, comma - at);
        check(kind == "pre" || kind == "post",
              "%s: keys of layer %zu are \"%.20s\", expected pre or post", path.c_str(), l,
              kind.c_str());
        bases.layer[l].rotated = kind == "post";
        at = comma + 1;
    }
    reader.ranks("ranks_k", bases, &LayerBasis::k);
    reader.ranks("ranks_v", bases, &LayerBasis::v);
    for (size_t l = 0; l < bases.layer.size(); l++) {
        reader.matrices(l, 'k', bases.layer[l].k);
        reader.matrices(l, 'v', bases.layer[l].v);
    }
    return bases;
}

}  // namespace stief
