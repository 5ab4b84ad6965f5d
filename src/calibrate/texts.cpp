#include "calibrate/texts.h"

#include <algorithm>

namespace stief {

std::string names_of(const std::vector<NamedText>& texts) {
    std::string names, file;
    for (const NamedText& one : texts) {
        size_t colon = one.name.rfind(": ");
        bool again = colon != one.name.npos && one.name.substr(0, colon) == file;
        file = colon == one.name.npos ? "" : one.name.substr(0, colon);
        names += (names.empty() ? "" : ", ") + (again ? one.name.substr(colon + 2) : one.name);
    }
    return names;
}

// Sequences of each text, dealt out one at a time.
static std::vector<size_t> shares(std::span<const NamedText> texts, size_t T, size_t at_most) {
    std::vector<size_t> count(texts.size());
    size_t dealt = 0;
    for (bool more = true, first = true; more; first = false) {
        more = false;
        for (size_t i = 0; i < texts.size(); i++) {
            bool has = count[i] < texts[i].ids.size() / T;
            if (!has || (dealt >= at_most && !first)) continue;
            count[i]++, dealt++, more = true;
        }
    }
    return count;
}

// begin(i, n, ids): where the i-th of n sequences begins in a text of so many ids.
template <class F>
static Sequences one_of_each_in_turn(std::span<const NamedText> texts, int T, size_t at_most,
                                     const F& begin) {
    Sequences all;
    all.T = T;
    std::vector<size_t> count = shares(texts, size_t(T), at_most);
    size_t most = count.empty() ? 0 : *std::max_element(count.begin(), count.end());
    for (size_t i = 0; i < most; i++)
        for (size_t text = 0; text < texts.size(); text++) {
            if (i >= count[text]) continue;
            const std::vector<Token>& ids = texts[text].ids;
            auto from = ids.begin() + ptrdiff_t(begin(i, count[text], ids.size()));
            all.ids.emplace_back(from, from + T);
            all.pos.push_back(0);
            all.text.push_back(text);
        }
    return all;
}

Sequences cut_sequences(std::span<const NamedText> texts, int T, size_t at_most, int context,
                        Random& random) {
    Sequences all = one_of_each_in_turn(texts, T, at_most, [&](size_t i, size_t n, size_t ids) {
        return n > 1 ? i * ((ids - size_t(T)) / (n - 1)) : 0;
    });
    for (int& pos : all.pos) pos = int(random.below(uint64_t(context - T) + 1));
    return all;
}

Sequences first_windows(std::span<const NamedText> texts, int T, size_t at_most) {
    return one_of_each_in_turn(texts, T, at_most,
                               [&](size_t i, size_t, size_t) { return i * size_t(T); });
}

std::vector<TextDivergence> by_text(const Measured& measured, const Sequences& windows,
                                    std::span<const NamedText> texts) {
    std::vector<TextDivergence> all;
    for (const NamedText& text : texts) all.push_back({text.name, 0, 0});
    size_t scored = size_t(windows.T) - 1;
    check(measured.step.size() == windows.count() * scored,
          "%zu scores of %zu windows of %d tokens", measured.step.size(), windows.count(), windows.T);
    for (size_t s = 0; s < windows.count(); s++) {
        TextDivergence& of = all[windows.text[s]];
        for (size_t i = 0; i < scored; i++) of.mean += double(measured.step[s * scored + i]);
        of.tokens += scored;
    }
    for (TextDivergence& one : all)
        if (one.tokens) one.mean /= double(one.tokens);
    return all;
}

}  // namespace stief
