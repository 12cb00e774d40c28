// Decodes gzip and zlib within a bound: a small body cannot become a large one.
#pragma once
#include <string_view>

#include "runtime/base/bytes.hpp"

namespace falaj::net {

// `encoding`: a Content-Encoding: "", "identity", "gzip", "x-gzip", "deflate". `unimplemented` for another, `overloaded` when
// the content would be larger than bytes_max, `invalid` when it is broken.
Result<Bytes> decode_content(std::string_view encoding, Bytes body, std::size_t bytes_max);

}  // namespace falaj::net
