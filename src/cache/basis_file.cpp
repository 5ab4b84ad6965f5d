// A file of bases, written and read: basis.h says what it holds. Whatever is read is checked.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/json_writer.h"
#include "base/linalg.h"
#include "cache/basis.h"
#include "formats/model_folder.h"

namespace stief {

// A basis that was rounded to float32 once: ‖QᵀQ − I‖_F stays below d · 2⁻²³ ≈ 2e-5; damage is
// larger.
constexpr double ORTHONORMAL = 1e-4;
// |E D − I| of each element as a share of |E| |D|, which bounds what rounding E and D does to it,
// 2⁻²³, whatever the spreads and the metric's condition.
constexpr double INVERSE = 1e-5;

constexpr std::pair<const char*, std::vector<float> HeadBasis::*> MATRICES[] = {
    {"q", &HeadBasis::q}, {"encode", &HeadBasis::encode}, {"decode", &HeadBasis::decode}};

// ---- writing -----------------------------------------------------------------------------------

static std::string formats_json(const Bases& bases, std::vector<HeadBasis> Bases::Layer::*side) {
    JsonWriter json;
    json.begin_array();
    for (const Bases::Layer& layer : bases.layer) {
        json.begin_array();
        for (const HeadBasis& head : layer.*side) {
            json.begin_array();
            for (const RowFormat& format : head.format) {
                json.begin_array();
                for (uint16_t n : format.count) json.add("", int(n));
                json.end_array();
            }
            json.end_array();
        }
        json.end_array();
    }
    return json.end_array().text;
}

void Bases::save(const std::string& path, uint64_t fingerprint) const {
    std::vector<std::vector<float>> stacked;
    std::vector<NamedTensor> tensors;
    std::string keys, values;
    for (size_t l = 0; l < layer.size(); l++) {
        keys += layer[l].rotated ? (l ? ",post" : "post") : (l ? ",pre" : "pre");
        values += format("%s%s", l ? "," : "", layer[l].joint ? "joint" : "head");
        for (bool of_values : {false, true}) {
            const std::vector<HeadBasis>& side = of_values ? layer[l].v : layer[l].k;
            size_t G = side.size(), d = G ? side.front().weight.size() : 0;
            auto add = [&](const char* name, std::vector<float> HeadBasis::*field, Shape shape) {
                std::vector<float>& all = stacked.emplace_back();
                size_t each = shape.size() > 2 ? d * d : d;
                for (const HeadBasis& head : side) {
                    all.insert(all.end(), (head.*field).begin(), (head.*field).end());
                    if ((head.*field).empty()) all.resize(all.size() + each);
                }
                tensors.push_back({format("layers.%zu.%c.%s", l, of_values ? 'v' : 'k', name),
                                   {nullptr, DType::F32, std::move(shape)}});
            };
            for (auto [name, field] : MATRICES) add(name, field, {G, d, d});
            add("weight", &HeadBasis::weight, {G, d});
            if (!of_values) add("mean", &HeadBasis::mean, {G, d});
        }
    }
    for (size_t i = 0; i < tensors.size(); i++) tensors[i].tensor.data = stacked[i].data();
    JsonWriter all_ages;
    all_ages.begin_array();
    for (int age : ages) all_ages.add("", age);
    std::map<std::string, std::string> all = metadata;
    all.erase("ranks_k"), all.erase("ranks_v");  // of a version 1 that was opened
    all["format"] = "stief-bases";
    all["version"] = "4";
    all["fingerprint"] = format("%016llx", static_cast<unsigned long long>(fingerprint));
    all["keys"] = keys;
    all["values"] = values;
    all["window"] = format("%d,%d", sinks, recent);
    all["ages"] = all_ages.end_array().text;
    all["formats_k"] = formats_json(*this, &Bases::Layer::k);
    all["formats_v"] = formats_json(*this, &Bases::Layer::v);
    write_safetensors(path, tensors, all);
}

// ---- reading: what the metadata says -----------------------------------------------------------

namespace {

struct Metadata {
    const std::string& path;
    const SafeTensors& file;

    const std::string& text(const std::string& key) const {
        auto found = file.metadata.find(key);
        if (found == file.metadata.end())
            fail("%s: its metadata has no \"%s\": not a bases file of stief calibrate",
                 path.c_str(), key.c_str());
        return found->second;
    }

    // 1 to 4
    int version() const {
        const std::string &kind = text("format"), &version = text("version");
        check(kind == "stief-bases" && version.size() == 1 && version[0] >= '1' &&
                  version[0] <= '4',
              "%s: expected bases of format version 1 to 4, found %s version %s",
              path.c_str(), printable(kind).c_str(), printable(version).c_str());
        return version[0] - '0';
    }

    // Which of two words each layer has: true for the second.
    std::vector<bool> words(const std::string& key, size_t layers, const char* first,
                            const char* second) const {
        std::vector<bool> all;
        std::string list = text(key) + ",";
        for (size_t l = 0, at = 0; l < layers; l++) {
            size_t comma = list.find(',', at);
            std::string word = comma == list.npos ? "" : list.substr(at, comma - at);
            check(word == first || word == second,
                  "%s: %s of layer %zu are %s, expected %s or %s", path.c_str(), key.c_str(), l,
                  printable(word).c_str(), first, second);
            all.push_back(word == second);
            at = comma + 1;
        }
        check(size_t(std::count(list.begin(), list.end(), ',')) == layers,
              "%s: %s of more than %zu layers", path.c_str(), key.c_str(), layers);
        return all;
    }

    void window(BasesFormats& to) const {
        const std::string& text = this->text("window");
        int used = 0;
        long long sinks = 0, recent = 0;
        bool ok = std::sscanf(text.c_str(), "%18lld,%18lld%n", &sinks, &recent, &used) == 2 &&
                  size_t(used) == text.size() && std::min(sinks, recent) >= 0 &&
                  std::max(sinks, recent) <= INT32_MAX;
        to.sinks = int(sinks), to.recent = int(recent);
        check(ok, "%s: window is %s, expected SINKS,RECENT", path.c_str(), printable(text).c_str());
    }

    void ages(BasesFormats& to) const {
        std::string where = path + ": ages";
        Json list = Json::parse(text("ages"), where);
        check(list.kind == Json::Array && list.items.size() <= MOST_AGES,
              "%s: expected a list of at most %zu distances", where.c_str(), MOST_AGES);
        for (const Json& age : list.items) {
            int last = to.ages.empty() ? to.recent : to.ages.back();
            to.ages.push_back(int(age.integer(where, 0, INT32_MAX)));
            check(to.ages.back() > last, "%s: %d after %d, expected more (the window comes first)",
                  where.c_str(), to.ages.back(), last);
        }
    }
};

RowFormat rank_of(const Json& r, int d, const std::string& where) {
    RowFormat one = RowFormat::whole(int(r.integer(where, 0, d)));
    check(one.kept() % 4 == 0 || one.kept() == d, "%s: rank %d is no multiple of 4", where.c_str(),
          one.kept());
    return one;
}

RowFormat format_of(const Json& counts, int d, const std::string& where) {
    check(counts.kind == Json::Array && counts.items.size() == RowFormat::WIDTHS,
          "%s: expected the coordinates at each of %d widths", where.c_str(), RowFormat::WIDTHS);
    RowFormat one;
    for (size_t w = 0; w < RowFormat::WIDTHS; w++) {
        int n = int(counts.items[w].integer(where, 0, d)), step = w ? ROW_GROUP : 4;
        check(n % step == 0 || (w == 0 && n == d),
              "%s: %d coordinates of %d bits, expected a multiple of %d",
              where.c_str(), n, RowFormat::BITS[w], step);
        one.count[w] = uint16_t(n);
    }
    check(one.kept() <= d, "%s: %d coordinates of heads of %d", where.c_str(), one.kept(), d);
    check(one.is_whole() || one.kept() <= MOST_KEPT,
          "%s: a row of codes keeps %d coordinates, expected at most %d", where.c_str(), one.kept(),
          MOST_KEPT);
    return one;
}

// joint: layers whose one head is all G of them together, or none of them
BasesFormats::Side side_of(const Metadata& metadata, const char* key, int version, size_t ages,
                           int G, int d, const std::vector<bool>& joint) {
    std::string where = metadata.path + ": " + key;
    Json rows = Json::parse(metadata.text(key), where);
    check(rows.kind == Json::Array && !rows.items.empty(), "%s: expected a list of layers",
          where.c_str());
    BasesFormats::Side side;
    for (const Json& row : rows.items) {
        auto& layer = side.emplace_back();
        check(row.kind == Json::Array, "%s: expected a list of heads in layer %zu", where.c_str(),
              side.size() - 1);
        bool together = side.size() <= joint.size() && joint[side.size() - 1];
        int width = together ? G * d : d, heads = together ? 1 : G;
        check(row.items.size() == size_t(heads), "%s: expected %d heads in layer %zu, found %zu",
              where.c_str(), heads, side.size() - 1, row.items.size());
        for (const Json& head : row.items) {
            std::string at =
                format("%s: layer %zu head %zu", where.c_str(), side.size() - 1, layer.size());
            if (version == 1) {
                layer.push_back({rank_of(head, width, at)});
                continue;
            }
            check(head.kind == Json::Array && head.items.size() == ages + 1,
                  "%s: expected a list of %zu formats, one more than there are ages", at.c_str(),
                  ages + 1);
            auto& formats = layer.emplace_back();
            for (const Json& one : head.items) formats.push_back(format_of(one, width, at));
        }
    }
    return side;
}

// ---- reading: the tensors ----------------------------------------------------------------------

struct Reader {
    const std::string& path;
    const Config& config;
    const SafeTensors& file;

    // visit(g, values) for the count floats of every head
    template <class Visit>
    void floats(const std::string& name, const Shape& shape, const Visit& visit) const {
        size_t count = 1;
        for (size_t i = 1; i < shape.size(); i++) count *= shape[i];
        Tensor t = file.take(name, shape, format("the model has %d kv heads of %d", config.G, config.d));
        check(t.dtype == DType::F32, "%s: %s is %s, expected f32", path.c_str(), name.c_str(),
              name_of(t.dtype));
        for (size_t g = 0; g < shape[0]; g++) {
            std::vector<float> values(count);
            std::memcpy(values.data(), static_cast<const char*>(t.data) + g * count * 4, count * 4);
            visit(g, std::move(values));
        }
    }

    void side(size_t l, char letter, std::vector<HeadBasis>& heads, int version) const {
        size_t G = heads.size(), d = size_t(config.G * config.d) / G;
        std::string prefix = format("layers.%zu.%c", l, letter);
        for (auto [name, field] : MATRICES)
            floats(prefix + "." + name, {G, d, d}, [&, field = field](size_t g, std::vector<float> values) {
                heads[g].*field = std::move(values);
            });
        for (HeadBasis& head : heads) head.weight.assign(d, 1.0f);
        if (version > 1)
            floats(prefix + ".weight", {G, d}, [&](size_t g, std::vector<float> values) {
                heads[g].weight = std::move(values);
            });
        if (version > 2 && letter == 'k')
            floats(prefix + ".mean", {G, d}, [&](size_t g, std::vector<float> values) {
                if (std::any_of(values.begin(), values.end(), [](float x) { return x != 0; }))
                    heads[g].mean = std::move(values);
            });
        for (size_t g = 0; g < G; g++)
            verify(heads[g], format("%s: %s head %zu", path.c_str(), prefix.c_str(), g));
    }

    void verify(const HeadBasis& head, const std::string& where) const {
        for (auto [name, field] : MATRICES)
            for (float x : head.*field)
                check(std::isfinite(x), "%s: an element of %s is %g: the file is damaged",
                      where.c_str(), name, double(x));
        size_t d = head.width();
        Matrix Q(d, d), E(d, d), D(d, d), E_size(d, d), D_size(d, d);
        Q.data.assign(head.q.begin(), head.q.end());
        E.data.assign(head.encode.begin(), head.encode.end());
        D.data.assign(head.decode.begin(), head.decode.end());
        for (size_t i = 0; i < d * d; i++)
            E_size.data[i] = std::fabs(E.data[i]), D_size.data[i] = std::fabs(D.data[i]);
        Matrix QtQ = transposed_times(Q, Q), ED = times(E, D), size = times(E_size, D_size);
        add_scaled(QtQ, -1, stief::identity(d));
        add_scaled(ED, -1, stief::identity(d));
        check(norm(QtQ) <= ORTHONORMAL,
              "%s: its basis is not orthonormal (off by %.2g): the file is damaged", where.c_str(),
              norm(QtQ));
        for (size_t i = 0; i < d * d; i++)
            check(std::fabs(ED.data[i]) <= INVERSE * size.data[i],
                  "%s: decode is not the inverse of encode (off by %.2g of %.2g): the file is "
                  "damaged",
                  where.c_str(), ED.data[i], size.data[i]);
        for (float w : head.weight)
            check(w >= 0 && std::isfinite(w),
                  "%s: a weight is %g, expected 0 or more: the file is damaged",
                  where.c_str(), double(w));
        for (float x : head.mean)
            check(std::isfinite(x), "%s: an element of its mean is %g: the file is damaged",
                  where.c_str(), double(x));
    }
};

}  // namespace

BasesFormats BasesFormats::of(const SafeTensors& file, const std::string& path, int G, int d) {
    Metadata metadata{path, file};
    int version = metadata.version();
    BasesFormats formats;
    metadata.window(formats);
    if (version > 1) metadata.ages(formats);
    size_t ages = formats.ages.size();
    formats.k = side_of(metadata, version > 1 ? "formats_k" : "ranks_k", version, ages, G, d, {});
    size_t layers = formats.k.size();
    formats.rotated = metadata.words("keys", layers, "pre", "post");
    formats.joint.assign(layers, false);
    if (file.metadata.count("values"))
        formats.joint = metadata.words("values", layers, "head", "joint");
    formats.v = side_of(metadata, version > 1 ? "formats_v" : "ranks_v", version, ages, G, d,
                        formats.joint);
    check(formats.v.size() == layers, "%s: formats of keys of %zu layers, and of values of %zu",
          path.c_str(), layers, formats.v.size());
    return formats;
}

static void set_formats(Bases& bases, const BasesFormats::Side& side,
                        std::vector<HeadBasis> Bases::Layer::*heads) {
    for (size_t l = 0; l < side.size(); l++)
        for (size_t g = 0; g < side[l].size(); g++) (bases.layer[l].*heads)[g].format = side[l][g];
}

Bases Bases::open(const std::string& path, const Config& config, uint64_t fingerprint) {
    expect_bases_file(path);
    SafeTensors file = SafeTensors::open_file(path);
    Metadata metadata{path, file};
    int version = metadata.version();
    std::string want = format("%016llx", static_cast<unsigned long long>(fingerprint));
    check(metadata.text("fingerprint") == want,
          "%s: these bases were learned for another model (%s; its fingerprint is %s, that of %s is "
          "%s)",
          path.c_str(),
          file.metadata.count("model") ? printable(file.metadata.at("model")).c_str() : "unnamed",
          printable(metadata.text("fingerprint")).c_str(), config.folder.c_str(), want.c_str());

    Bases bases;
    std::vector<HeadBasis> heads(size_t(config.G), HeadBasis{});
    bases.layer.assign(size_t(config.L), {true, heads, heads});
    bases.metadata = file.metadata;

    BasesFormats formats = BasesFormats::of(file, path, config.G, config.d);
    check(formats.k.size() == bases.layer.size(), "%s: expected formats of %zu layers, found %zu",
          path.c_str(), bases.layer.size(), formats.k.size());
    for (size_t l = 0; l < bases.layer.size(); l++) {
        Bases::Layer& layer = bases.layer[l];
        layer.rotated = formats.rotated[l], layer.joint = formats.joint[l];
        if (layer.joint) layer.v.resize(1);
    }
    bases.ages = formats.ages, bases.sinks = formats.sinks, bases.recent = formats.recent;
    set_formats(bases, formats.k, &Bases::Layer::k);
    set_formats(bases, formats.v, &Bases::Layer::v);
    Reader reader{path, config, file};
    for (size_t l = 0; l < bases.layer.size(); l++) {
        reader.side(l, 'k', bases.layer[l].k, version);
        for (const HeadBasis& head : bases.layer[l].k)
            check(version > 3 || head.mean.empty() || !bases.layer[l].rotated,
                  "%s: layer %zu: keys after rotation have one mean at all positions (format version 3), "
                  "which this program no longer stores; learn the bases again (stief calibrate)",
                  path.c_str(), l);
        reader.side(l, 'v', bases.layer[l].v, version);
    }
    return bases;
}

}  // namespace stief
