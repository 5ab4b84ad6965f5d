#include "commands/calibration_text.h"

#include <algorithm>
#include <filesystem>

#include "base/file.h"
#include "commands/session.h"
#include "formats/marked_text.h"
#include "formats/tokenizer_config.h"

namespace stief {

namespace fs = std::filesystem;

std::vector<std::string> calibration_files(const Args& args) {
    if (!args.rest.empty()) return args.rest;
    std::error_code failed;
    fs::path folder = fs::read_symlink("/proc/self/exe", failed).parent_path();
    std::string beside = folder.string();
    for (int up = 0; up < 3 && !folder.empty(); up++, folder = folder.parent_path()) {
        std::string path = (folder / "models" / "calibration.txt").string();
        if (!file_exists(path)) continue;
        status(args, "learning from " + path);
        return {path};
    }
    fail("no text to learn from, and models/calibration.txt, which is learned from otherwise, is "
         "neither in %s nor in the two folders above it; give a text: stief calibrate MODEL TEXT -o "
         "BASES",
         beside.c_str());
}

// The day that Llama 3.1's conversations state is fixed: the same text gives the same bases tomorrow.
static std::optional<ChatTemplate> chat_of(const Args& args, const Tokenizer& tokenizer) {
    TokenizerConfig config = TokenizerConfig::open(args.model);
    bool stated = config.chat_template && recognise(*config.chat_template, config.bos_token);
    if (args.chat_form.empty() && !stated) {
        status(args, config.chat_template
                         ? config.template_file + " states a chat template that is not known here: "
                           "conversations are learned from as plain text (or give --template)"
                         : "no chat template: conversations are learned from as plain text");
        return {};
    }
    ChatForm form = chat_form(args.model, tokenizer, args.chat_form, "");
    if (!form.date.empty()) form.date = "26 Jul 2024";
    return ChatTemplate(tokenizer, form);
}

static void add_file(std::vector<NamedText>& texts, const std::string& path, const Args& args,
                     const Tokenizer& tokenizer, bool shipped) {
    std::string text = read_text(path);
    if (!MarkedText::is_marked(text)) {
        texts.push_back({path, tokenizer.encode(text)});
    } else {
        std::optional<ChatTemplate> chat = chat_of(args, tokenizer);
        std::string name = shipped ? fs::path(path).filename().string() : path;
        for (const MarkedText::Part& part : MarkedText::parse(text, path).part)
            texts.push_back(
                {name + ": " + part.name, encode_part(part, tokenizer, chat ? &*chat : nullptr)});
    }
    for (const NamedText& one : texts)
        check(!one.ids.empty(), "%s: empty, expected a text", one.name.c_str());
}

CalibrationText read_texts(const Args& args, const std::vector<std::string>& files,
                           int sequence) {
    Tokenizer tokenizer = Tokenizer::open(args.model);
    CalibrationText all;
    for (const std::string& path : files)
        add_file(all.learn, path, args, tokenizer, args.rest.empty());
    if (!args.holdout.empty()) {
        add_file(all.held_out, args.holdout, args, tokenizer, false);
        return all;
    }
    for (NamedText& one : all.learn) {
        size_t tenth = one.ids.size() / 10, third = one.ids.size() / 3;
        size_t held = std::min(std::max(tenth, size_t(sequence)), third);
        all.held_out.push_back({one.name, {one.ids.end() - ptrdiff_t(held), one.ids.end()}});
        one.ids.resize(one.ids.size() - held);
    }
    return all;
}

}  // namespace stief
