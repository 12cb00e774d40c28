// A series of numbers as a small plot of characters.
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace falaj::nodes {

// `height` lines of `width` dots: the mean of the numbers that fall into a column, between the least and the largest mean.
std::string plot(std::span<const double> values, std::string_view what, std::size_t width = 60, std::size_t height = 8);

}  // namespace falaj::nodes
