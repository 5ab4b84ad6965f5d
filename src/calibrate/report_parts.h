// The parts of the report that both objectives share.
#pragma once
#include <initializer_list>

#include "calibrate/calibrate.h"

namespace stief {

extern const char* const REPORT_STYLE;  // <style> … </style>, light and dark

// What each colour of the charts below it stands for; dashes as the lines have them.
std::string legend(const std::vector<std::pair<int, std::string>>& entries);

// KL divergence and perplexity against bytes of a token: of the learned bases and of all that they
// are compared with; a mark where the bases of this file are.
std::string size_charts(const CalibrationResult& result);

// Predicted against measured, a dot for the keys and one for the values of each layer.
std::string foretold_chart(const CalibrationResult& result);

// A cell whose colour mixes the page's card with a series colour by share, 0 … 1.
std::string heat_cell(double share, int colour, const std::string& text, const std::string& title);

// Tables with a bar a row: the divergence on each held-out text; where the minutes went.
std::string text_bars(const CalibrationResult& result);
std::string time_bars(const CalibrationResult& result);

}  // namespace stief
