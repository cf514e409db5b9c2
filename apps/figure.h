// A figure of line charts as one file that needs no other: .svg, .html (the same picture, with values under the pointer), .png.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace megalodon::apps {

using Points = std::vector<std::pair<double, double>>;  // ascending in x

struct Curve {
  std::string name;  // in the legend; curves of one name have one colour
  Points points;
  bool marks = false;  // points shown, besides the line between them
  bool noisy = false;  // a running mean is shown, over a faint line of the points
};

struct Panel {
  std::string title;
  std::vector<Curve> curves;  // none may be empty
  bool log_x = false;
};

struct Figure {
  std::string title;
  std::string x_label;
  std::vector<Panel> panels;
};

// Throws Error(InvalidArgument) unless the name ends in .svg, .html or .png: to be said before the work begins.
void check_figure_name(const std::string& path);

// By the ending of `path`: .svg, .html or .png. Light or dark follows the reader's setting in .svg and .html; `dark` is for .png.
// Throws Error(InvalidArgument) for another ending, Error(Io).
void write_figure(const Figure& figure, const std::string& path, bool dark);

}  // namespace megalodon::apps
