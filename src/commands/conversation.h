// A conversation on disk, so that it goes on without the model reading it again. Little-endian:
//
//     "STIEFTLK"            magic
//     u32 version           u32 dtype of the rows (0 f32, 1 f16, 2 bf16)
//     u64 model             fingerprint of the weights, config and bases
//     u64 shape             hash of the cache's ranks and window
//     u32 positions         u32 messages
//     u64 bytes of text     of form and messages; u64 bytes of rows
//     i32 × positions       the ids in the cache
//     u32 bytes of form, form: of the template
//     messages × { u32 bytes of role, u32 bytes of text, role, text }
//     rows                  as KvCache::save gives them
//     u64 checksum          of everything before it
//
// The file's size follows from its head and is compared before anything else is believed; a file of
// another model, cache or version, and one of which a bit is not as it was, is refused whole.
// What a sampler draws at random is no part of a conversation.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "formats/tokenizer.h"

namespace stief {

// Of the form above; no other is read.
constexpr uint32_t CONVERSATION_VERSION = 4;

struct Message {
    std::string role, text;
};

struct Conversation {
    std::string form = "llama3";       // ChatForm::name: what the ids are written in
    std::vector<Message> messages;
    std::vector<Token> ids;            // (cache.used)  what the cache holds, BOS first
};

// model: identifies everything that gives the rows their meaning (Session::meaning_of_rows).
// Error where path is a file that is no conversation: a slip of the hand must not cost a model.
void save_conversation(const std::string& path, const Conversation& talk, const KvCache& cache,
                       uint64_t model);

// Fills the cache and returns the rest; an Error leaves the cache as it was. vocabulary: ids are
// below it. form: what it must be written in.
Conversation load_conversation(const std::string& path, KvCache& cache, uint64_t model,
                               int vocabulary, const std::string& form);
// What a saved one was given as `model`.
uint64_t meaning_of_conversation(const std::string& path);

}  // namespace stief
