#include "apps/figure.h"

#include <cairo.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/format.h"
#include "io/file.h"
#include "megalodon/error.h"

namespace megalodon::apps {

namespace {

// Colours by what they are for; the last ones are the curves', distinguishable without seeing red and green apart (Okabe, Ito).
enum Ink { kPaper, kInk, kMuted, kGrid, kFirstCurve };
constexpr int kCurveInks = 6;
constexpr std::array<std::uint32_t, kFirstCurve + kCurveInks> kLight = {0xFFFFFF, 0x1F2328, 0x59636E, 0xE3E6EA, 0x0072B2,
                                                                        0xD55E00, 0x009E73, 0xCC79A7, 0x8A6D00, 0x6A3D9A};
constexpr std::array<std::uint32_t, kFirstCurve + kCurveInks> kDark = {0x14171B, 0xE6EAEF, 0x9AA4AF, 0x2C323A, 0x56B4E9,
                                                                       0xFF8A3D, 0x2FCB9A, 0xE79AC6, 0xE6C84F, 0xB99AE8};

enum class Anchor { Start, Middle, End };

// What a figure is drawn with.
class Canvas {
 public:
  virtual ~Canvas() = default;
  virtual void line(const Points& points, int ink, double width, double opacity) = 0;
  virtual void dot(double x, double y, double radius, int ink) = 0;
  virtual void text(double x, double y, const std::string& words, double size, int ink, Anchor anchor, bool bold) = 0;
};

std::string escaped(const std::string& words) {
  std::string out;
  for (const char c : words) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      default: out += c;
    }
  }
  return out;
}

class SvgCanvas : public Canvas {
 public:
  void line(const Points& points, int ink, double width, double opacity) override {
    body_ += format("<path class=\"l i%d\" stroke-width=\"%g\" opacity=\"%g\" d=\"", ink, width, opacity);
    const char* move = "M";
    for (const auto& [x, y] : points) {
      body_ += format("%s%.1f %.1f", move, x, y);
      move = "L";
    }
    body_ += "\"/>\n";
  }
  void dot(double x, double y, double radius, int ink) override {
    body_ += format("<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"/>\n", ink, x, y, radius);
  }
  void text(double x, double y, const std::string& words, double size, int ink, Anchor anchor, bool bold) override {
    static constexpr const char* kAnchors[] = {"start", "middle", "end"};
    body_ += format("<text class=\"f%d\" x=\"%.1f\" y=\"%.1f\" font-size=\"%g\" text-anchor=\"%s\"%s>", ink, x, y, size,
                    kAnchors[static_cast<int>(anchor)], bold ? " font-weight=\"600\"" : "");
    body_ += escaped(words) + "</text>\n";
  }

  std::string document(double width, double height) const {
    const auto colours = [](const auto& palette) {
      std::string rules;
      for (std::size_t i = 0; i < palette.size(); ++i) rules += format("--c%d:#%06X;", static_cast<int>(i), palette[i]);
      return rules;
    };
    std::string out = format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" height=\"%g\" "
        "font-family=\"system-ui,sans-serif\">\n",
        width, height, width, height);
    out += "<style>:root{" + colours(kLight) + "}@media (prefers-color-scheme:dark){:root{" + colours(kDark) + "}}";
    out += ".l{fill:none;stroke-linejoin:round}.paper{fill:var(--c0)}";
    for (std::size_t i = 0; i < kLight.size(); ++i) {
      const int n = static_cast<int>(i);
      out += format(".i%d{stroke:var(--c%d)}.f%d{fill:var(--c%d)}", n, n, n, n);
    }
    return out + "</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n" + body_ + "</svg>\n";
  }

 private:
  std::string body_;
};

class PngCanvas : public Canvas {
 public:
  PngCanvas(double width, double height, bool dark)
      : palette_(dark ? kDark : kLight),
        surface_(
            cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(width * kScale), static_cast<int>(height * kScale)),
            cairo_surface_destroy),
        cairo_(cairo_create(surface_.get()), cairo_destroy) {
    cairo_scale(cairo_.get(), kScale, kScale);
    use(kPaper, 1);
    cairo_paint(cairo_.get());
    cairo_set_line_join(cairo_.get(), CAIRO_LINE_JOIN_ROUND);
  }
  void line(const Points& points, int ink, double width, double opacity) override {
    for (const auto& [x, y] : points) cairo_line_to(cairo_.get(), x, y);
    use(ink, opacity);
    cairo_set_line_width(cairo_.get(), width);
    cairo_stroke(cairo_.get());
  }
  void dot(double x, double y, double radius, int ink) override {
    constexpr double kWholeTurn = 6.283185307179586;
    cairo_arc(cairo_.get(), x, y, radius, 0, kWholeTurn);
    use(ink, 1);
    cairo_fill(cairo_.get());
  }
  void text(double x, double y, const std::string& words, double size, int ink, Anchor anchor, bool bold) override {
    cairo_select_font_face(cairo_.get(), "sans-serif", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo_.get(), size);
    cairo_text_extents_t extents;
    cairo_text_extents(cairo_.get(), words.c_str(), &extents);
    const double shift = anchor == Anchor::Start ? 0 : anchor == Anchor::Middle ? 0.5 : 1;
    cairo_move_to(cairo_.get(), x - shift * extents.x_advance, y);
    use(ink, 1);
    cairo_show_text(cairo_.get(), words.c_str());
    cairo_new_path(cairo_.get());
  }

  std::string document() const {
    std::string out;
    const auto put = [](void* to, const unsigned char* data, unsigned bytes) {
      static_cast<std::string*>(to)->append(reinterpret_cast<const char*>(data), bytes);
      return CAIRO_STATUS_SUCCESS;
    };
    const cairo_status_t status = cairo_surface_write_to_png_stream(surface_.get(), put, &out);
    if (status != CAIRO_STATUS_SUCCESS) throw Error(ErrorKind::Internal, cairo_status_to_string(status), "plot");
    return out;
  }

 private:
  static constexpr double kScale = 2;  // pixels to a unit

  void use(int ink, double opacity) {
    const std::uint32_t rgb = palette_[static_cast<std::size_t>(ink)];
    const auto part = [&](int shift) { return static_cast<double>(rgb >> shift & 0xFF) / 255; };
    cairo_set_source_rgba(cairo_.get(), part(16), part(8), part(0), opacity);
  }

  const std::array<std::uint32_t, kFirstCurve + kCurveInks>& palette_;
  std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)> surface_;
  std::unique_ptr<cairo_t, decltype(&cairo_destroy)> cairo_;
};

// An axis: the values at its ends, and where they lie.
struct Axis {
  double low, high;
  double from, to;  // of the canvas
  bool log = false;

  double at(double v) const {
    const double share = log ? std::log(v / low) / std::log(high / low) : (v - low) / (high - low);
    return from + std::clamp(share, -0.02, 1.02) * (to - from);
  }
  // Round values inside, about `count` of them.
  std::vector<double> ticks(int count) const {
    std::vector<double> all;
    if (log) {
      const double decades = std::log10(high / low);
      for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10) {
        for (const double digit : {1.0, 2.0, 5.0}) {
          const bool wanted = digit == 1 || decades < 2;
          if (wanted && digit * power >= low * 0.999 && digit * power <= high * 1.001) all.push_back(digit * power);
        }
      }
      return all;
    }
    const double rough = (high - low) / count;
    const double power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough / power < 1.5 ? 1 : rough / power < 3.5 ? 2 : rough / power < 7.5 ? 5 : 10);
    for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) all.push_back(i * step);
    return all;
  }
};

// 1200000 -> "1.2M", 0.0003 -> "0.0003"
std::string short_number(double v) {
  const double size = std::abs(v);
  if (size >= 1e9) return format("%gG", v / 1e9);
  if (size >= 1e6) return format("%gM", v / 1e6);
  if (size >= 1e4) return format("%gk", v / 1e3);
  return format("%.4g", std::abs(v) < 1e-12 ? 0.0 : v);
}

constexpr double kPanelWidth = 560, kPanelHeight = 300;
constexpr double kLeft = 64, kRight = 20, kTop = 40, kBottom = 44;

constexpr std::size_t kLegendColumns = 3;

struct Layout {
  int columns, rows;
  double header, width, height;

  // The left and the top of a panel.
  std::pair<double, double> place(std::size_t panel) const {
    const int row = static_cast<int>(panel) / columns;
    const int column = static_cast<int>(panel) % columns;
    return {column * kPanelWidth, header + row * kPanelHeight};
  }
};

struct Limits {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  void take(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
};

// What lies closer together than this has no ticks between: they would not differ from one another.
bool nearly_equal(double low, double high) { return high - low <= 1e-9 * std::max(std::abs(low), std::abs(high)); }

Axis x_axis(const Panel& panel, double left) {
  Limits x;
  for (const Curve& curve : panel.curves) {
    x.take(curve.points.front().first);
    x.take(curve.points.back().first);
  }
  if (nearly_equal(x.low, x.high)) x.high = x.low + std::max(1.0, 1e-6 * std::abs(x.low));
  return {x.low, x.high, left + kLeft, left + kPanelWidth - kRight, panel.log_x && x.low > 0};
}

// The first points of a run are often far above all others: what few of many reach does not set the scale.
Axis y_axis(const Panel& panel, double top) {
  std::vector<double> all;
  for (const Curve& curve : panel.curves) {
    for (const auto& [x, y] : curve.points) all.push_back(y);
  }
  std::sort(all.begin(), all.end());
  const double low = all.front();
  double high = all.back();
  if (all.size() >= 100) {
    const double usual = all[all.size() * 98 / 100];
    high = std::min(high, usual + 0.35 * (usual - low));
  }
  if (nearly_equal(low, high)) high = low + std::max(std::abs(low), 1e-6) * 0.1;
  const double margin = 0.05 * (high - low);
  const double bottom = low >= 0 && low < margin ? 0 : low - margin;
  return {bottom, high + margin, top + kPanelHeight - kBottom, top + kTop};
}

// A running mean, for eyes that look for the course of something noisy.
Points smoothed(const Points& points) {
  const double weight = 1.0 - std::exp(-50.0 / static_cast<double>(points.size()));
  Points out = points;
  for (std::size_t i = 1; i < out.size(); ++i)
    out[i].second = out[i - 1].second + weight * (points[i].second - out[i - 1].second);
  return out;
}

// No more than about `most` points: the means of equal stretches.
Points thinned(const Points& points, std::size_t most) {
  if (points.size() <= most) return points;
  Points out;
  const std::size_t stretch = (points.size() + most - 1) / most;
  for (std::size_t i = 0; i < points.size(); i += stretch) {
    const std::size_t end = std::min(i + stretch, points.size());
    double x = 0, y = 0;
    for (std::size_t j = i; j < end; ++j) x += points[j].first, y += points[j].second;
    const auto count = static_cast<double>(end - i);
    out.emplace_back(x / count, y / count);
  }
  return out;
}

constexpr std::size_t kMostPoints = 1000;

Layout layout_of(const Figure& figure, std::size_t names) {
  const int count = static_cast<int>(figure.panels.size());
  const int columns = count > 1 ? 2 : 1;
  const int rows = (count + columns - 1) / columns;
  const std::size_t legend_rows = (names + kLegendColumns - 1) / kLegendColumns;
  const double header = 56 + 18 * static_cast<double>(legend_rows);
  return {columns, rows, header, columns * kPanelWidth, header + rows * kPanelHeight};
}

// The legend's names in the order they appear; a curve's place among them chooses its colour.
std::vector<std::string> names_of(const Figure& figure) {
  std::vector<std::string> names;
  for (const Panel& panel : figure.panels) {
    for (const Curve& curve : panel.curves) {
      if (std::find(names.begin(), names.end(), curve.name) == names.end()) names.push_back(curve.name);
    }
  }
  return names;
}

int ink_of(const std::vector<std::string>& names, const std::string& name) {
  const auto place = std::find(names.begin(), names.end(), name) - names.begin();
  return kFirstCurve + static_cast<int>(place % kCurveInks);
}

void draw_panel(Canvas& canvas, const Figure& figure, const Panel& panel, const std::vector<std::string>& names, double left,
                double top) {
  const Axis x = x_axis(panel, left);
  const Axis y = y_axis(panel, top);
  canvas.text(x.from, top + 22, panel.title, 14, kInk, Anchor::Start, true);
  for (const double tick : y.ticks(5)) {
    canvas.line({{x.from, y.at(tick)}, {x.to, y.at(tick)}}, kGrid, 1, 1);
    canvas.text(x.from - 8, y.at(tick) + 4, short_number(tick), 11, kMuted, Anchor::End, false);
  }
  for (const double tick : x.ticks(6))
    canvas.text(x.at(tick), y.from + 18, short_number(tick), 11, kMuted, Anchor::Middle, false);
  canvas.line({{x.from, y.from}, {x.to, y.from}}, kMuted, 1, 1);
  canvas.text((x.from + x.to) / 2, y.from + 36, figure.x_label, 11, kMuted, Anchor::Middle, false);
  const auto place = [&](Points points) {
    for (auto& [px, py] : points) px = x.at(px), py = y.at(py);
    return points;
  };
  for (const Curve& curve : panel.curves) {
    const int ink = ink_of(names, curve.name);
    canvas.line(place(thinned(curve.points, kMostPoints)), ink, curve.noisy ? 1 : 1.8, curve.noisy ? 0.3 : 1);
    if (curve.noisy) canvas.line(place(thinned(smoothed(curve.points), kMostPoints)), ink, 1.8, 1);
    if (curve.marks || curve.points.size() == 1) {
      for (const auto& [px, py] : place(curve.points)) canvas.dot(px, py, 3, ink);
    }
  }
}

void draw(Canvas& canvas, const Figure& figure, const std::vector<std::string>& names, const Layout& layout) {
  canvas.text(kLeft, 34, figure.title, 18, kInk, Anchor::Start, true);
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::size_t row = i / kLegendColumns;
    const double x = kLeft + static_cast<double>(i % kLegendColumns) * (layout.width - kLeft) / kLegendColumns;
    const double y = 60 + 18 * static_cast<double>(row);
    canvas.line({{x, y - 4}, {x + 22, y - 4}}, ink_of(names, names[i]), 3, 1);
    canvas.text(x + 30, y, names[i], 12, kInk, Anchor::Start, false);
  }
  for (std::size_t i = 0; i < figure.panels.size(); ++i) {
    const auto [left, top] = layout.place(i);
    draw_panel(canvas, figure, figure.panels[i], names, left, top);
  }
}

// Where the pointer is over a panel: a line there, and each curve's value at the nearest point before it.
constexpr const char* kScript = R"JS(
const svg = document.querySelector('svg'), tip = document.getElementById('tip');
const ns = 'http://www.w3.org/2000/svg', rule = document.createElementNS(ns, 'line');
rule.setAttribute('class', 'i2'); svg.append(rule);
const hide = () => { tip.style.display = 'none'; rule.style.display = 'none'; };
svg.addEventListener('pointerleave', hide);
svg.addEventListener('pointermove', e => {
  const at = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const p = panels.find(p => at.x >= p.x0 && at.x <= p.x1 && at.y >= p.y1 && at.y <= p.y0);
  if (!p) return hide();
  const share = (at.x - p.x0) / (p.x1 - p.x0);
  const x = p.log ? p.low * Math.pow(p.high / p.low, share) : p.low + share * (p.high - p.low);
  let html = '<b>' + (+x.toPrecision(6)) + '</b> ' + xLabel;
  for (const c of p.curves) {
    let best = null;
    for (const [cx, cy] of c.points) if (cx <= x || best === null) best = cy; else break;
    html += '<br><span style="color:var(--c' + c.ink + ')">\u25CF</span> ' + c.name + '  <b>' + (+best.toPrecision(5)) + '</b>';
  }
  tip.innerHTML = html;
  tip.style.display = 'block';
  tip.style.left = Math.min(e.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = (e.clientY + 14) + 'px';
  for (const [k, v] of [['x1', at.x], ['x2', at.x], ['y1', p.y1], ['y2', p.y0]]) rule.setAttribute(k, v);
  rule.style.display = '';
});
)JS";

std::string html_page(const Figure& figure, const std::vector<std::string>& names, const Layout& layout, const std::string& svg) {
  nlohmann::json panels = nlohmann::json::array();
  for (std::size_t i = 0; i < figure.panels.size(); ++i) {
    const Panel& panel = figure.panels[i];
    const auto [left, top] = layout.place(i);
    const Axis x = x_axis(panel, left);
    const Axis y = y_axis(panel, top);
    nlohmann::json curves = nlohmann::json::array();
    for (const Curve& curve : panel.curves) {
      curves.push_back(
          {{"name", escaped(curve.name)}, {"ink", ink_of(names, curve.name)}, {"points", thinned(curve.points, kMostPoints)}});
    }
    panels.push_back({{"x0", x.from},
                      {"x1", x.to},
                      {"y0", y.from},
                      {"y1", y.to},
                      {"low", x.low},
                      {"high", x.high},
                      {"log", x.log},
                      {"curves", curves}});
  }
  const auto json = [](const nlohmann::json& value) {  // "</" must not end the script
    const std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    std::string out;
    for (const char c : text) {
      if (c == '/' && out.ends_with('<')) out += '\\';
      out += c;
    }
    return out;
  };
  return "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
         "content=\"width=device-width\">"
         "<meta name=\"color-scheme\" content=\"light dark\"><title>" +
         escaped(figure.title) +
         "</title>\n<style>body{margin:0;background:var(--c0)}svg{display:block;margin:auto;max-width:100%;height:auto}"
         "#tip{position:fixed;display:none;pointer-events:none;background:var(--c0);color:var(--c1);border:1px solid var(--c2);"
         "border-radius:6px;padding:6px 10px;font:12px system-ui,sans-serif;white-space:pre}</style></head>\n<body>\n" +
         svg + "<div id=\"tip\"></div>\n<script>\nconst panels = " + json(panels) +
         ", xLabel = " + json(escaped(figure.x_label)) + ";" + kScript + "</script>\n</body></html>\n";
}

}  // namespace

void check_figure_name(const std::string& path) {
  for (const char* ending : {".html", ".svg", ".png"}) {
    if (path.ends_with(ending)) return;
  }
  throw Error(ErrorKind::InvalidArgument, "the file's name must end in .html, .svg or .png", path);
}

void write_figure(const Figure& figure, const std::string& path, bool dark) {
  check_figure_name(path);
  const std::vector<std::string> names = names_of(figure);
  const Layout layout = layout_of(figure, names.size());
  if (path.ends_with(".png")) {
    PngCanvas canvas(layout.width, layout.height, dark);
    draw(canvas, figure, names, layout);
    return write_file_atomically(path, canvas.document());
  }
  SvgCanvas canvas;
  draw(canvas, figure, names, layout);
  const std::string svg = canvas.document(layout.width, layout.height);
  write_file_atomically(path, path.ends_with(".html") ? html_page(figure, names, layout, svg) : svg);
}

}  // namespace megalodon::apps
