// Between Beast and http.hpp: what a request line says, and the bytes of a response. For .cpp files of this box.
#pragma once
#include <string>
#include <string_view>

#include "runtime/net/http.hpp"

namespace falaj::net {

// "%41" -> "A"; `plus`: '+' is a blank. `invalid` for a broken escape or a NUL.
Result<std::string> percent_decoded(std::string_view text, bool plus);
// Fills path and query from target.
Status split_target(HttpRequest& request);
std::string_view reason_phrase(unsigned status) noexcept;
bool same_header(std::string_view a, std::string_view b) noexcept;
// Status line and headers, the empty line included.
std::string response_head(const HttpResponse& response, std::string_view server, bool keep_alive, bool http_1_0, WallTime now);

}  // namespace falaj::net
