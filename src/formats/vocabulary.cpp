#include "formats/vocabulary.h"

#include <bit>
#include <cstring>

namespace stief {

// Eight bytes at a time: multiply, then fold the upper half into the lower one. Which hash a string
// has depends on the byte order of the machine; nothing but the place in the table follows from it.
static uint64_t hash_of(std::string_view bytes) {
    uint64_t hash = bytes.size();
    for (size_t i = 0; i < bytes.size(); i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, bytes.data() + i, bytes.size() - i < 8 ? bytes.size() - i : 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}

Vocabulary::Vocabulary(size_t count, Token limit)
    : tokens(size_t(limit)), slots(std::bit_ceil(2 * count + 2), Slot{0, -1}) {}

// The slot that holds bytes, or the empty one where they belong.
size_t Vocabulary::slot_of(std::string_view wanted, uint64_t hash) const {
    size_t mask = slots.size() - 1, i = hash & mask;
    uint32_t tag = uint32_t(hash >> 32);
    while (slots[i].id >= 0 && (slots[i].tag != tag || bytes(slots[i].id) != wanted))
        i = (i + 1) & mask;
    return i;
}

bool Vocabulary::add_name(Token id, std::string_view name) {
    Place& place = tokens[size_t(id)];
    if (place.taken) return false;
    place = {text.size(), uint32_t(name.size()), true};
    text += name;
    if (id >= size) size = id + 1;
    return true;
}

bool Vocabulary::add(Token id, std::string_view bytes) {
    uint64_t hash = hash_of(bytes);
    Slot& slot = slots[slot_of(bytes, hash)];
    if (slot.id >= 0 || !add_name(id, bytes)) return false;
    slot = {uint32_t(hash >> 32), id};
    if (bytes.size() > longest) longest = bytes.size();
    return true;
}

std::string_view Vocabulary::bytes(Token id) const {
    const Place& place = tokens[size_t(id)];
    return std::string_view(text).substr(place.begin, place.length);
}

Token Vocabulary::find(std::string_view bytes) const {
    return slots[slot_of(bytes, hash_of(bytes))].id;
}

}  // namespace stief
