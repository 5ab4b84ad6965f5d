// A chart as inline SVG: axes, lines with dots, a legend by colour. Colours are CSS classes s0 … s3, so
// that the page decides what they are in light and dark.
#pragma once
#include <string>
#include <vector>

namespace stief {

struct Series {
    std::string name;
    int colour = 0;                             // class s0 … s3
    std::vector<std::pair<double, double>> points;
    bool dots = false;
};

struct Chart {
    std::string title, x_label, y_label;
    std::vector<Series> series;
    double width = 360, height = 220;
    bool from_zero = true;  // the y axis begins at 0, or at the least value
    bool log_y = false;                         // decades; points that are not positive are left out
};

std::string svg_chart(const Chart& chart);

// Text as HTML: & < > and quotes escaped.
std::string html_text(const std::string& text);

}  // namespace stief
