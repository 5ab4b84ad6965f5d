#include "calibrate/svg.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/utf8.h"

namespace stief {

std::string html_text(const std::string& text) {
    std::string out;
    for (size_t i = 0, n; i < text.size(); i += n) {
        n = utf8_length(text, i);
        std::string one = text.substr(i, n);
        out += one == "&"    ? "&amp;"
               : one == "<"  ? "&lt;"
               : one == ">"  ? "&gt;"
               : one == "\"" ? "&quot;"
                             : one;
        if (n == 0) out += "\xef\xbf\xbd", n = 1;    // U+FFFD
    }
    return out;
}

namespace {

// 1, 2 or 5 times a power of ten: about `steps` of them make up range.
double nice_step(double range, int steps) {
    double rough = range / steps, power = std::pow(10, std::floor(std::log10(rough)));
    for (double factor : {1.0, 2.0, 5.0})
        if (factor * power >= rough) return factor * power;
    return 10 * power;
}

struct Axis {
    double low, high;  // of the data, or of its decimal logarithm
    double from, to;   // in the drawing
    bool log;

    double at(double value) const {
        double v = log ? std::log10(value) : value;
        return from + (v - low) / (high - low) * (to - from);
    }
    std::vector<double> ticks(int steps) const {
        std::vector<double> values;
        if (log) {
            for (double e = std::floor(low); e <= high + 1e-9; e++)
                for (double digit : {1.0, 2.0, 5.0}) {
                    bool needed = digit == 1 || high - low < 2.2;  // decades alone are too few there
                    double v = e + std::log10(digit);
                    if (needed && v >= low - 1e-9 && v <= high + 1e-9) values.push_back(std::pow(10, v));
                }
            return values;
        }
        double step = nice_step(high - low, steps);
        for (long i = std::lround(std::ceil(low / step - 1e-9)); double(i) * step <= high + step * 1e-9;
             i++)
            values.push_back(double(i) * step);
        return values;
    }
};

Axis axis_of(const Chart& chart, bool y, double from, double to) {
    bool log = y ? chart.log_y : chart.log_x;
    bool fitted = log || (y && !chart.from_zero);
    double low = fitted ? 1e300 : 0, high = fitted ? 1e-300 : 0;
    for (const Series& one : chart.series)
        for (auto [px, py] : one.points) {
            double v = y ? py : px;
            if (!std::isfinite(v) || (log && v <= 0)) continue;
            low = std::min(low, v), high = std::max(high, v);
        }
    if (log && !(low <= high)) low = high = 1;  // nothing to show
    if (log) low = std::log10(low), high = std::log10(high);
    if (!(high > low)) high = low + (log ? 1 : std::max(1.0, std::abs(low)));
    double room = fitted ? 0.04 * (high - low) : 0;
    low -= room, high += y || log ? room : 0;
    return {low, high, from, to, log};
}

std::string line(const Series& one, const Axis& x, const Axis& y) {
    std::string path, dots;
    for (auto [px, py] : one.points) {
        if (!std::isfinite(py) || (y.log && py <= 0) || (x.log && px <= 0)) continue;
        path += format("%s%.1f,%.1f", path.empty() ? "" : " ", x.at(px), y.at(py));
        if (one.dots)
            dots += format(
                "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"><title>%s: %.4g, %.4g"
                "</title></circle>",
                one.colour, x.at(px), y.at(py), html_text(one.name).c_str(), px, py);
    }
    if (!one.line) return dots;
    return format("<polyline class=\"s%d\" points=\"%s\"><title>%s</title></polyline>", one.colour,
                  path.c_str(), html_text(one.name).c_str()) +
           dots;
}

}  // namespace

std::string svg_chart(const Chart& chart) {
    double left = 60, right = chart.width - 10, top = 26, bottom = chart.height - 40;
    Axis x = axis_of(chart, false, left, right), y = axis_of(chart, true, bottom, top);
    std::string svg = format(
        "<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">"
        "<text class=\"title\" x=\"%.0f\" y=\"15\">%s</text>",
        chart.width, chart.height, html_text(chart.title).c_str(), left,
        html_text(chart.title).c_str());
    int digits = 3;  // of the figures at the axis; more where they differ only later
    std::vector<double> levels = y.ticks(4);
    while (digits < 9 && levels.size() > 1 && !y.log &&
           format("%.*g", digits, levels[0]) == format("%.*g", digits, levels[1]))
        digits++;
    for (double v : levels)
        svg += format(
            "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
            "<text class=\"tick\" text-anchor=\"end\" x=\"%.1f\" y=\"%.1f\">%.*g</text>",
            left, right, y.at(v), y.at(v), left - 5, y.at(v) + 4, digits, v);
    for (double v : x.ticks(6))
        svg += format(
            "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>"
            "<text class=\"tick\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%.4g</text>",
            x.at(v), x.at(v), top, bottom, x.at(v), bottom + 15, v);
    svg += format("<text class=\"label\" text-anchor=\"middle\" x=\"%.1f\" y=\"%.1f\">%s</text>",
                  (left + right) / 2, chart.height - 8, html_text(chart.x_label).c_str());
    svg += format(
        "<text class=\"label\" text-anchor=\"middle\" transform=\"translate(12 %.1f) rotate(-90)\">"
        "%s</text>",
        (top + bottom) / 2, html_text(chart.y_label).c_str());
    if (chart.mark > 0)
        svg += format("<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>",
                      x.at(chart.mark), x.at(chart.mark), top, bottom);
    for (const Series& one : chart.series) svg += line(one, x, y);
    return svg + "</svg>";
}

}  // namespace stief
