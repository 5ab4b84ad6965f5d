#include "commands/conversation.h"

#include <bit>
#include <cassert>
#include <cstring>
#include <memory>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"

namespace stief {

static_assert(std::endian::native == std::endian::little, "the format is what memory holds");

static constexpr char MAGIC[] = {'S', 'T', 'I', 'E', 'F', 'T', 'L', 'K'};

struct Head {
    char magic[8];
    uint32_t version, dtype;
    uint64_t model, shape;
    uint32_t positions, messages;
    uint64_t text_bytes, row_bytes;
};
static_assert(sizeof(Head) == 56, "no padding");

// What says which bytes are which: the stores of every head, and what decides who sees them. Of
// rings what they come from: those of a larger cache have the same first rows (RowStore).
static uint64_t shape_of(const KvCache& cache) {
    Hash hash;
    for (int number : {cache.sinks, cache.recent}) hash.add(uint64_t(number));
    for (int age : cache.ages) hash.add(uint64_t(age));
    for (const CacheLayer& layer : cache.layer) {
        for (int number : {layer.d, int(layer.rotated), layer.joint, layer.batch})
            hash.add(uint64_t(number));
        for (const std::vector<CacheRows>* side : {&layer.k, &layer.v}) {
            hash.add(uint64_t(side->size()));
            for (const CacheRows& head : *side)
                for (const RowStore& store : head.store) {
                    hash.add(uint64_t(store.data != nullptr)), hash.add(uint64_t(store.bytes));
                    for (uint16_t n : store.format.count) hash.add(uint64_t(n));
                }
        }
    }
    return hash.value();
}

static bool begins_with_magic(const MappedFile& file) {
    return file.size >= sizeof MAGIC && !std::memcmp(file.data, MAGIC, sizeof MAGIC);
}

static std::string pack(const Conversation& talk) {
    std::string packed;
    auto number = [&](size_t n) {
        uint32_t word = uint32_t(n);
        packed.append(reinterpret_cast<const char*>(&word), sizeof word);
    };
    number(talk.form.size());
    packed += talk.form;
    for (const Message& one : talk.messages) {
        number(one.role.size());
        number(one.text.size());
        packed += one.role + one.text;
    }
    return packed;
}

void save_conversation(const std::string& path, const Conversation& talk, const KvCache& cache,
                       uint64_t model) {
    assert(talk.ids.size() == size_t(cache.used));
    if (file_exists(path)) {
        MappedFile old(path);
        check(old.size == 0 || begins_with_magic(old),
              "%s exists and is no conversation; choose another name", path.c_str());
    }
    std::string text = pack(talk);
    size_t row_bytes = cache.snapshot_bytes(cache.used);
    auto rows = std::make_unique_for_overwrite<char[]>(row_bytes);
    cache.save(rows.get());

    Head head{{}, CONVERSATION_VERSION, uint32_t(cache.dtype), model, shape_of(cache), uint32_t(cache.used),
              uint32_t(talk.messages.size()), text.size(), row_bytes};
    std::memcpy(head.magic, MAGIC, sizeof MAGIC);
    AtomicFile file(path);
    Hash sum;
    auto write = [&](const void* bytes, size_t size) {
        sum.add_bytes(bytes, size);
        file.write(bytes, size);
    };
    write(&head, sizeof head);
    write(talk.ids.data(), talk.ids.size() * sizeof(Token));
    write(text.data(), text.size());
    write(rows.get(), row_bytes);
    uint64_t checksum = sum.value();
    file.write(&checksum, sizeof checksum);
    file.commit();
}

// The head, once the size that it promises is the file's and the checksum is right.
static Head checked_head(const MappedFile& file, const std::string& path) {
    const char* name = path.c_str();
    check(begins_with_magic(file), "%s is no saved conversation", name);
    Head head;
    check(file.size >= sizeof head + sizeof(uint64_t), "%s is cut short: %zu bytes", name,
          file.size);
    std::memcpy(&head, file.data, sizeof head);
    check(head.version == CONVERSATION_VERSION, "%s is of version %u, this program reads version %u", name,
          head.version, CONVERSATION_VERSION);

    size_t rest = file.size - sizeof head - sizeof(uint64_t), ids = size_t(head.positions) * 4;
    bool fits = ids <= rest && head.text_bytes <= rest - ids &&
                head.row_bytes == rest - ids - head.text_bytes;
    check(fits, "%s is damaged or cut short: its %zu bytes are not what its head promises", name,
          file.size);
    Hash sum;                 // the parts one by one, as they were written
    const unsigned char* next = file.data;
    for (size_t part : {sizeof head, ids, size_t(head.text_bytes), size_t(head.row_bytes)}) {
        sum.add_bytes(next, part);
        next += part;
    }
    uint64_t checksum = sum.value();
    check(!std::memcmp(&checksum, next, sizeof checksum), "%s is damaged: its checksum is wrong",
          name);
    return head;
}

// Form and messages.
static void unpack(Conversation& talk, const char* next, const Head& head, const char* name) {
    size_t size = head.text_bytes;
    auto take = [&](size_t bytes) {
        check(bytes <= size, "%s is damaged: its messages are longer than their part", name);
        const char* taken = next;
        next += bytes, size -= bytes;
        return taken;
    };
    auto number = [&] {
        uint32_t word;
        std::memcpy(&word, take(sizeof word), sizeof word);
        return size_t(word);
    };
    auto text = [&](size_t bytes) { return std::string(take(bytes), bytes); };
    talk.form = text(number());
    for (uint32_t i = 0; i < head.messages; i++) {
        size_t role_bytes = number(), text_bytes = number();
        std::string role = text(role_bytes);
        talk.messages.push_back({std::move(role), text(text_bytes)});
    }
    check(size == 0, "%s is damaged: its messages are shorter than their part", name);
}

uint64_t meaning_of_conversation(const std::string& path) {
    return checked_head(MappedFile(path), path).model;
}

Conversation load_conversation(const std::string& path, KvCache& cache, uint64_t model,
                               int vocabulary, const std::string& form) {
    MappedFile file(path);
    Head head = checked_head(file, path);
    const char* name = path.c_str();
    check(head.model == model,
          "%s was saved with another model or another cache: other --bases, --cache, --window or --ages",
          name);
    check(head.dtype <= uint32_t(DType::BF16), "%s is damaged: no cache type %u", name, head.dtype);
    const char* saved_type = name_of(DType(head.dtype));
    check(head.dtype == uint32_t(cache.dtype),
          "%s was saved with a %s cache, this one is %s: --cache %s", name, saved_type,
          name_of(cache.dtype), saved_type);
    check(head.shape == shape_of(cache),
          "%s was saved with another cache: other formats, ages or another window", name);
    check(head.positions <= uint32_t(cache.capacity),
          "%s holds %u positions, here is room for %d: start with --context %u or more", name,
          head.positions, cache.capacity, head.positions);
    check(head.row_bytes == cache.snapshot_bytes(int(head.positions)),
          "%s is damaged: the rows of %u positions are not %llu bytes", name, head.positions,
          static_cast<unsigned long long>(head.row_bytes));

    Conversation talk;
    const unsigned char* next = file.data + sizeof head;
    talk.ids.resize(head.positions);
    if (head.positions > 0) std::memcpy(talk.ids.data(), next, talk.ids.size() * sizeof(Token));
    for (Token id : talk.ids)
        check(id >= 0 && id < vocabulary, "%s is damaged: token %d of %d", name, id, vocabulary);
    next += talk.ids.size() * sizeof(Token);
    unpack(talk, reinterpret_cast<const char*>(next), head, name);
    check(talk.form == form, "%s is written in the form %s, this conversation in "
          "%s: stief chat --template %s goes on with it", name, printable(talk.form).c_str(),
          form.c_str(), printable(talk.form).c_str());
    cache.load(next + head.text_bytes, int(head.positions));
    return talk;
}

}  // namespace stief
