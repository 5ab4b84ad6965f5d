#include "commands/plan.h"

#include <algorithm>

#include "base/limits.h"
#include "commands/session.h"

namespace stief {

Plan::Bytes Plan::bytes(int positions) const {
    Bytes all{};
    all.cache = KvCache::bytes_for(config, positions, dtype, bases ? &*bases : nullptr, batch);
    all.activations = Transformer::arena_bytes_for(config, positions, std::min(batch, positions));
    if (reference) all.reference = KvCache::bytes_for(config, positions, *reference);
    if (!watch) return all;
    all.logits = Watch::logits_bytes_for(config, *watch);
    all.whole = watch->cold == WatchOptions::File ? 0 : whole_bytes(positions);
    return all;
}

size_t Plan::whole_bytes(int positions) const {
    return KvCache::bytes_for(config, positions, dtype);
}

size_t Plan::brought_bytes(int positions) const {
    return bytes(positions).whole / size_t(config.L);
}

size_t Plan::bytes_per_token(size_t layer) const {
    if (bases) return bases->layer[layer].bytes(dtype);
    return 2 * size_t(config.G) * size_t(config.d) * size_of(dtype);
}

Plan plan_of(const Args& args, const Config& config, const Weights& weights, const Backend& backend,
             int default_context) {
    Plan plan{config};
    plan.context = args.context ? args.context : std::min(config.context, default_context);
    check(plan.context <= config.context,
          "--context %d is more than the model's %d positions (max_position_embeddings)", plan.context,
          config.context);
    // Enough that reading the weights costs little beside the products.
    plan.batch = backend.copies_weights ? 2048 : 512;
    CacheChoice choice = cache_choice(args, config, weights);
    plan.dtype = choice.dtype, plan.bases = std::move(choice.bases);
    plan.watch = watch_options(args);
    if (std::string name = reference_name(args); !name.empty())
        plan.reference = name == "full"    ? plan.dtype
                         : name == "exact" ? DType::F32
                                           : parse_cache_dtype(name);
    return plan;
}

std::string reference_name(const Args& args) {
    if (args.verb != "perplexity" && args.verb != "risk") return "";
    return args.compare.empty() && compresses(args) ? "full" : args.compare;
}

Room room_of(const Backend& backend) {
    Room room{backend.available(), {}};
    if (backend.cold_apart) room.host = available_memory();
    return room;
}

std::string too_large(const Plan& plan, const Room& room) {
    auto own = [&](int positions) {
        Plan::Bytes all = plan.bytes(positions);
        return all.cache + all.activations + all.reference + all.logits +
               (room.host ? plan.brought_bytes(positions) : all.whole);
    };
    auto host = [&](int positions) { return room.host ? plan.bytes(positions).whole : 0; };
    auto fits = [&](int positions) {
        return own(positions) <= room.own && host(positions) <= room.host.value_or(0);
    };
    if (fits(plan.context)) return "";
    int most = 0, too_many = plan.context;
    while (too_many - most > 1) {
        int middle = most + (too_many - most) / 2;
        (fits(middle) ? most : too_many) = middle;
    }
    std::string advice = most > 0 ? format("--context %d would fit", most)
                                  : std::string("not even one position fits");
    if (own(plan.context) <= room.own)
        return format("the whole rows of %d positions need %.2f GiB of host memory, %.2f GiB are "
                      "available; %s", plan.context, double(host(plan.context)) * 0x1p-30,
                      double(*room.host) * 0x1p-30, advice.c_str());
    return format("the cache%s and the activations of %d positions need %.2f GiB, %.2f GiB are "
                  "available; %s",
                  plan.reference             ? ", the one it is compared with"
                  : plan.watch && !room.host ? ", its whole rows"
                                             : "",
                  plan.context,
                  double(own(plan.context)) * 0x1p-30, double(room.own) * 0x1p-30, advice.c_str());
}

}  // namespace stief
