#include "calibrate/partial.h"

#include <cstring>

#include "base/file.h"
#include "base/hash.h"
#include "base/signals.h"

namespace stief {

static const std::string MAGIC = "stief-partial 7\n";

namespace {

uint64_t hash_of(const std::vector<double>& all) {
    Hash hash;
    hash.add_bytes(all.data(), all.size() * sizeof(double));
    return hash.value();
}

// Numbers in the order in which put() and get() are called; a length goes before its numbers.
struct Writer {
    std::vector<double> all;
    void operator()(double& x) { all.push_back(x); }
    void operator()(int& x) { all.push_back(x); }
    void operator()(bool& x) { all.push_back(x); }
    void operator()(float& x) { all.push_back(double(x)); }
    void operator()(size_t& x) { all.push_back(double(x)); }
    void length(size_t& n) { all.push_back(double(n)); }
};

struct Reader {
    const double* at;
    const double* end;
    double take() {
        check(at < end, "what an interrupted run left is cut short; run again without --resume");
        return *at++;
    }
    void operator()(double& x) { x = take(); }
    void operator()(int& x) { x = int(take()); }
    void operator()(bool& x) { x = take() != 0; }
    void operator()(float& x) { x = float(take()); }
    void operator()(size_t& x) { x = size_t(take()); }
    void length(size_t& n) {
        n = size_t(take());
        check(n <= size_t(end - at),
              "what an interrupted run left is damaged; run without --resume");
    }
};

template <class IO, class T, class F>
void each(IO& io, std::vector<T>& list, const F& item) {
    size_t n = list.size();
    io.length(n);
    list.resize(n);
    for (T& one : list) item(one);
}

template <class IO>
void matrix(IO& io, Matrix& A) {
    size_t rows = A.rows;
    io.length(rows);
    each(io, A.data, [&](double& x) { io(x); });
    A.rows = rows;
    A.cols = rows ? A.data.size() / rows : 0;
}

template <class IO>
void curves(IO& io, Curves& heads) {
    each(io, heads, [&](std::vector<RankPoint>& curve) {
        each(io, curve, [&](RankPoint& p) { io(p.rank), io(p.error); });
    });
}

template <class IO>
void layer(IO& io, LearnedLayer& b) {
    io(b.rotated), io(b.descended), io(b.weight);
    each(io, b.units, [&](BasisUnit& u) {
        io(u.values), io(u.first), io(u.count);
        matrix(io, u.metric.S), matrix(io, u.metric.S_inverse), matrix(io, u.warm), matrix(io, u.Q);
        each(io, u.spectrum, [&](double& x) { io(x); });
    });
    each(io, b.errors, [&](RankError& e) { io(e.rank), io(e.warm), io(e.learned); });
    for (Curves* of : {&b.warm_k, &b.warm_v, &b.k, &b.v}) curves(io, *of);
    for (std::vector<int>* side : {&b.ranks.k, &b.ranks.v}) each(io, *side, [&](int& r) { io(r); });
}

template <class IO, class T>
void numbers(IO& io, std::vector<T>& list) {
    each(io, list, [&](T& x) { io(x); });
}

template <class IO>
void prices(IO& io, Prices& p) {
    numbers(io, p.dropped), numbers(io, p.noise);
}

template <class IO>
void units(IO& io, PricedState& s) {
    each(io, s.unit, [&](PricedUnit& u) {
        io(u.coded), io(u.rotated);
        for (Matrix* of : {&u.metric.S, &u.metric.S_inverse, &u.moment, &u.Q}) matrix(io, *of);
        numbers(io, u.spread), numbers(io, u.encode), numbers(io, u.decode), numbers(io, u.mean);
        prices(io, u.compressed);
        each(io, u.age, [&](Prices& p) { prices(io, p); });
        each(io, u.distortion, [&](std::vector<double>& d) { numbers(io, d); });
    });
    numbers(io, s.scale), numbers(io, s.foretold), numbers(io, s.budget);
}

}  // namespace

std::string Partial::path(const char* what, int n) const {
    return join(folder, format("%s.%d", what, n));
}

void Partial::write_numbers(const std::string& to, const std::vector<double>& all) const {
    uint64_t header[] = {key, hash_of(all)};
    AtomicFile file(to);
    file.write(MAGIC);
    file.write(header, sizeof header);
    file.write(all.data(), all.size() * sizeof(double));
    file.commit();
    say_what_is_kept();
}

std::vector<double> Partial::read_numbers(const std::string& from) const {
    std::string text = read_text(from);
    uint64_t header[2] = {};
    size_t start = MAGIC.size() + sizeof header;
    bool whole = text.size() >= start && text.compare(0, MAGIC.size(), MAGIC) == 0;
    std::vector<double> all(whole ? (text.size() - start) / sizeof(double) : 0);
    if (whole) {
        std::memcpy(header, text.data() + MAGIC.size(), sizeof header);
        if (!all.empty()) std::memcpy(all.data(), text.data() + start, all.size() * sizeof(double));
    }
    check(whole && header[1] == hash_of(all), "%s: damaged; run again without --resume",
          from.c_str());
    check(header[0] == key,
          "%s: of a run with another model, text or options; run again without --resume, or with the "
          "options of that run",
          from.c_str());
    return all;
}

void Partial::save(int n, const LearnedLayer& bases) const {
    LearnedLayer copy = bases;
    Writer writer;
    layer(writer, copy);
    write_numbers(path("layers", n), writer.all);
}

bool Partial::load(int n, const Config& config, LearnedLayer& bases) const {
    std::string from = path("layers", n);
    if (!file_exists(from)) return false;
    std::vector<double> all = read_numbers(from);
    Reader reader{all.data(), all.data() + all.size()};
    layer(reader, bases);
    check(bases.k.size() == size_t(config.G), "%s: damaged; run again without --resume",
          from.c_str());
    return true;
}

void Partial::save(int phases, const PricedState& state) const {
    PricedState copy = state;
    Writer writer;
    units(writer, copy);
    write_numbers(path("units", phases), writer.all);
}

int Partial::load(PricedState& state) const {
    constexpr int PHASES = 2;
    for (int phases = PHASES; phases > 0; phases--) {
        std::string from = path("units", phases);
        if (!file_exists(from)) continue;
        std::vector<double> all = read_numbers(from);
        Reader reader{all.data(), all.data() + all.size()};
        units(reader, state);
        return phases;
    }
    return 0;
}

}  // namespace stief
