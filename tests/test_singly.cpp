// Several tokens in one step that come out as each alone would: what verifying a draft rests on.
#include "cache/kv_cache.h"
#include "forward/transformer.h"
#include "forward/watch.h"
#include "reference.h"
#include "tiny_model.h"

using namespace stief;
using namespace stief::testing;

namespace {

std::vector<Token> random_ids(int n, int V, uint64_t seed) {
    Random random(seed);
    std::vector<Token> ids;
    for (int i = 0; i < n; i++) ids.push_back(Token(random.below(uint64_t(V))));
    return ids;
}

// Logits (n, V) after `first` tokens of ids were read as a prompt: the others in steps of `each`.
Floats logits_after(Transformer& transformer, KvCache& cache, const std::vector<Token>& ids,
                    int first, int each) {
    size_t V = size_t(transformer.model.config.V), n = ids.size();
    std::span<const Token> all = ids;
    Floats logits((n - size_t(first)) * V, NaN);
    cache.used = 0;
    transformer.forward(cache, all.first(size_t(first)), nullptr, 0);
    Singly singly(transformer, each > 1);
    for (size_t at = size_t(first); at < n; at += size_t(each)) {
        int T = int(std::min(size_t(each), n - at));
        transformer.forward(cache, all.subspan(at, size_t(T)),
                            logits.data() + (at - size_t(first)) * V, T);
    }
    return logits;
}

std::vector<char> rows_of(const KvCache& cache) {
    std::vector<char> rows(cache.snapshot_bytes(cache.used));
    cache.save(rows.data());
    return rows;
}

}  // namespace

TEST_SUITE_BEGIN("forward");

TEST_CASE("tokens that come together singly have the logits of single steps, to the last bit") {
    const struct {
        TinyModel model;
        int prompt, tokens, rank;
        DType rows;
    } cases[] = {
        {{"f32 weights, plain cache", 2, 32, 48, 64, 4, 2, 8, DType::F32}, 5, 33, 0, DType::F16},
        {{"bf16 weights, widths of no vector", 2, 36, 52, 67, 3, 1, 12, DType::BF16}, 1, 40, 0,
         DType::F16},
        {{"f16 weights, f32 rows", 1, 64, 80, 64, 8, 2, 16, DType::F16}, 250, 20, 0, DType::F32},
        {{"across a change of split", 1, 32, 48, 64, 4, 2, 8, DType::BF16, true, false, 0.15, 8192},
         4080, 40, 0, DType::BF16},
        {{"a cache of rank 4", 2, 64, 80, 64, 8, 2, 16, DType::BF16}, 90, 37, 4, DType::F16},
    };
    for (const auto& c : cases) {
        Scratch folder;
        write_tiny_model(c.model, folder.folder.string());
        for (const std::string& isa : cpu_isas())
            for (int threads : {1, 2}) {
                CAPTURE(std::string(c.model.why));
                CAPTURE(isa);
                Model model = Model::open(folder.folder.string(), BackendOptions{"cpu", isa}, threads);
                CHECK(model.backend->most_singly == Watch::MOST + 1);    // a draft's verification
                const Config& config = model.config;
                std::vector<Token> ids = random_ids(c.prompt + c.tokens, config.V, 3);
                std::optional<Bases> bases;
                if (c.rank) bases = Bases::identity(config, c.rank);
                int context = c.prompt + c.tokens;
                KvCache cache(*model.backend, config, context, c.rows, bases ? &*bases : nullptr);
                Transformer transformer(model, context);
                Floats one = logits_after(transformer, cache, ids, c.prompt, 1);
                std::vector<char> rows = rows_of(cache);
                for (int each : {2, 5, 8, 33}) {
                    CAPTURE(each);
                    CHECK(logits_after(transformer, cache, ids, c.prompt, each) == one);
                    CHECK(rows_of(cache) == rows);
                }
            }
    }
}

TEST_SUITE_END();
