// A chart as inline SVG: axes, lines with dots, which have their figures as titles. Colours are CSS
// classes s0 … s4, so that the page decides what they are in light and dark.
#pragma once
#include <string>
#include <vector>

namespace stief {

struct Series {
    std::string name;
    int colour = 0;                             // class s0 … s4
    std::vector<std::pair<double, double>> points;
    bool dots = false, line = true;
};

struct Chart {
    std::string title, x_label, y_label;
    std::vector<Series> series;
    double width = 360, height = 220;
    bool from_zero = true;  // the y axis begins at 0, or at the least value
    bool log_y = false, log_x = false;          // points that are not positive are left out
    double mark = 0;                            // an upright line at that x, if above 0
};

std::string svg_chart(const Chart& chart);

// Text as HTML: & < > and quotes escaped.
std::string html_text(const std::string& text);

}  // namespace stief
