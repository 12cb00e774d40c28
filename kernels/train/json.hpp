// The little JSON that model metadata needs: strings out, lists of strings in. Requests and configurations are read elsewhere.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/result.hpp"

namespace falaj::kernels {

std::string json_string(std::string_view text);
std::string json_strings(std::span<const std::string> texts);
Result<std::vector<std::string>> read_json_strings(std::string_view text);

}  // namespace falaj::kernels
