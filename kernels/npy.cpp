#include "kernels/npy.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kHeaderMax = 1U << 16;
constexpr std::size_t kTextMax = 1U << 20;  // characters in one string

struct Descr {
  std::string_view code;  // without the byte order
  DType dtype;
};
constexpr Descr kDescrs[] = {{"f4", DType::f32}, {"f8", DType::f64}, {"f2", DType::f16}, {"i1", DType::i8},
                             {"i2", DType::i16}, {"i4", DType::i32}, {"i8", DType::i64}, {"u1", DType::u8},
                             {"u2", DType::u16}, {"u4", DType::u32}, {"u8", DType::u64}, {"b1", DType::boolean}};

// How a type without a counterpart in NumPy is kept.
DType carrier(DType dtype) {
  if (dtype == DType::bf16) return DType::u16;
  if (is_float8(dtype) || dtype == DType::u4) return DType::u8;
  if (dtype == DType::i4) return DType::i8;
  return dtype;
}

struct Header {
  std::string descr;
  bool fortran = false;
  Shape shape;
  std::size_t data = 0;  // where the values start
};

// The dictionary of a header is a Python literal; this reads the one form that NumPy writes.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}
  bool take(char c) {
    skip();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool word(std::string_view w) {
    skip();
    if (text_.substr(at_, w.size()) != w) return false;
    at_ += w.size();
    return true;
  }
  bool quoted(std::string& out) {
    skip();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) return false;
    std::size_t end = text_.find(text_[at_], at_ + 1);
    if (end == std::string_view::npos) return false;
    out = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return true;
  }
  bool number(std::int64_t& out) {
    skip();
    auto [end, code] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), out);
    if (code != std::errc{}) return false;
    at_ = static_cast<std::size_t>(end - text_.data());
    return true;
  }

 private:
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  std::string_view text_;
  std::size_t at_ = 0;
};

Error damaged(std::string_view what) { return {ErrorCode::corrupt, format("this is no .npy file, or it is damaged: {}", what)}; }

Result<Header> read_header(ByteView file) {
  if (file.size() < 10 || std::memcmp(file.data(), kMagic.data(), kMagic.size()) != 0) return damaged("it does not start as one");
  Header h;
  std::size_t length = file[8] | static_cast<std::size_t>(file[9]) << 8;
  h.data = 10;
  if (file[6] >= 2) {
    if (file.size() < 12) return damaged("it ends in its header");
    length |= static_cast<std::size_t>(file[10]) << 16 | static_cast<std::size_t>(file[11]) << 24;
    h.data = 12;
  }
  if (file[6] < 1 || file[6] > 3) return Error{ErrorCode::unimplemented, format("version {} of .npy is not supported", file[6])};
  if (length > kHeaderMax || length > file.size() - h.data) return damaged("its header is longer than the file, or than any header");
  Reader text({reinterpret_cast<const char*>(file.data()) + h.data, length});
  h.data += length;
  bool descr = false;
  bool order = false;
  bool shape = false;
  if (!text.take('{')) return damaged("its header is no dictionary");
  while (!text.take('}')) {
    std::string key;
    if (!text.quoted(key) || !text.take(':')) return damaged("its header has no key where one must be");
    if (key == "descr") {
      if (!text.quoted(h.descr)) return Error{ErrorCode::unimplemented, "arrays of records are not supported: save each field by itself"};
      descr = true;
    } else if (key == "fortran_order") {
      h.fortran = text.word("True");
      if (!h.fortran && !text.word("False")) return damaged("fortran_order is neither True nor False");
      order = true;
    } else if (key == "shape") {
      if (!text.take('(')) return damaged("its shape is no tuple");
      while (!text.take(')')) {
        std::int64_t d = 0;
        if (!text.number(d) || d < 0) return damaged("its shape has a size that is no number");
        if (h.shape.rank() == kRankMax) return invalid(format("it has more than {} dimensions", kRankMax));
        h.shape.push_back(d);
        text.take(',');
      }
      shape = true;
    } else {
      return damaged(format("its header has the key '{}'", key.substr(0, 40)));
    }
    text.take(',');
  }
  if (!descr || !order || !shape) return damaged("its header is not complete");
  return h;
}

void append_utf8(std::string& out, std::uint32_t c) {
  auto put = [&](std::uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) c = 0xFFFD;
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

// The code points of UTF-8; bytes that are none stand for U+FFFD.
std::u32string code_points(std::string_view text) {
  std::u32string out;
  for (std::size_t i = 0; i < text.size();) {
    auto lead = static_cast<unsigned char>(text[i]);
    std::size_t n = lead < 0x80 ? 1 : (lead >> 5 == 6 ? 2 : (lead >> 4 == 14 ? 3 : (lead >> 3 == 30 ? 4 : 0)));
    std::uint32_t c = n == 1 ? lead : lead & (0x7FU >> n);
    bool good = n > 0 && i + n <= text.size();
    for (std::size_t k = 1; good && k < n; ++k) {
      auto next = static_cast<unsigned char>(text[i + k]);
      good = next >> 6 == 2;
      c = c << 6 | (next & 0x3FU);
    }
    out.push_back(good ? static_cast<char32_t>(c) : char32_t{0xFFFD});
    i += good ? n : 1;
  }
  return out;
}

Result<Tensor> read_texts(ByteView data, const Shape& shape, std::string_view code) {
  bool wide = code[0] == 'U';
  std::size_t width = 0;
  auto [end, problem] = std::from_chars(code.data() + 1, code.data() + code.size(), width);
  if (problem != std::errc{} || end != code.data() + code.size() || width > kTextMax)
    return damaged("the width of its strings is no number");
  std::size_t each = width * (wide ? 4 : 1);
  FALAJ_ASSIGN(std::size_t bytes, byte_size(DType::u8, shape));
  if (each != 0 && bytes > data.size() / each) return damaged("it ends before its last value");
  if (each == 0 && bytes > (1U << 16)) return invalid("too many empty strings");
  FALAJ_TRY(byte_size(DType::string, shape));
  Tensor t(DType::string, shape);
  std::size_t at = 0;
  for (auto& text : t.mutable_data<std::string>()) {
    std::size_t used = 0;  // trailing zeros are padding
    for (std::size_t i = 0; i < width; ++i) {
      std::uint32_t c = data[at + i * (wide ? 4 : 1)];
      if (wide) std::memcpy(&c, data.data() + at + i * 4, 4);
      wide ? append_utf8(text, c) : text.push_back(static_cast<char>(c));
      if (c != 0) used = text.size();
    }
    text.resize(used);
    at += each;
  }
  return t;
}

// From Fortran's order (first index fastest) to ours.
template <class T>
void reorder(const T* from, T* to, const Shape& shape) {
  std::int64_t n = shape.elements();
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t rest = i;
    std::int64_t at = 0;
    for (std::size_t d = 0; d < shape.rank(); ++d) {
      at = at * shape[d] + rest % shape[d];
      rest /= shape[d];
    }
    to[at] = from[i];
  }
}
// `at` above is built first index outermost, from digits taken first index fastest.
Tensor from_fortran(const Tensor& t) {
  Tensor out = t.clone();
  switch (size_of(t.dtype())) {
    case 1:
      reorder(static_cast<const std::uint8_t*>(t.raw()), static_cast<std::uint8_t*>(out.mutable_raw()), t.shape());
      break;
    case 2:
      reorder(static_cast<const std::uint16_t*>(t.raw()), static_cast<std::uint16_t*>(out.mutable_raw()), t.shape());
      break;
    case 4:
      reorder(static_cast<const std::uint32_t*>(t.raw()), static_cast<std::uint32_t*>(out.mutable_raw()), t.shape());
      break;
    case 8:
      reorder(static_cast<const std::uint64_t*>(t.raw()), static_cast<std::uint64_t*>(out.mutable_raw()), t.shape());
      break;
    default:
      reorder(t.data<std::string>().data(), out.mutable_data<std::string>().data(), t.shape());
      break;
  }
  return out;
}

}  // namespace

Result<Tensor> read_npy(ByteView file, DType wanted) {
  FALAJ_ASSIGN(Header h, read_header(file));
  std::string_view code = h.descr;
  if (!code.empty() && code[0] == '>') return Error{ErrorCode::unimplemented, "its values are big-endian: save them little-endian"};
  if (!code.empty() && (code[0] == '<' || code[0] == '|' || code[0] == '=')) code.remove_prefix(1);
  ByteView data = file.subspan(h.data);
  bool texts = code.size() > 1 && (code[0] == 'U' || code[0] == 'S');
  auto found = std::ranges::find(kDescrs, code, &Descr::code);
  if (!texts && found == std::end(kDescrs))
    return Error{ErrorCode::unimplemented, format("values of NumPy's type '{}' are not supported", h.descr.substr(0, 20))};
  DType dtype = texts ? DType::string : found->dtype;
  if (wanted != DType::undefined && dtype != carrier(wanted))
    return invalid(format("the values are {}; {} is needed{}", to_string(dtype), to_string(wanted),
                          carrier(wanted) == wanted ? "" : format(" (as {})", to_string(carrier(wanted)))));
  Tensor t;
  if (texts) {
    FALAJ_ASSIGN(t, read_texts(data, h.shape, code));
  } else {
    if (wanted != DType::undefined) dtype = wanted;
    FALAJ_ASSIGN(std::size_t bytes, byte_size(dtype, h.shape));
    if (bytes > data.size()) return damaged(format("its shape {} needs {} bytes, {} are there", to_string(h.shape), bytes, data.size()));
    t = Tensor::uninitialised(dtype, h.shape);
    if (bytes > 0) std::memcpy(t.mutable_raw(), data.data(), bytes);
    auto* values = static_cast<std::uint8_t*>(t.mutable_raw());
    for (std::size_t i = 0; i < bytes && (dtype == DType::boolean || dtype == DType::i4 || dtype == DType::u4); ++i) {
      bool fits = dtype == DType::boolean || (dtype == DType::u4 ? values[i] < 16 : values[i] < 8 || values[i] >= 0xF8);
      if (!fits) return invalid(format("value {} at position {} does not fit {}", values[i], i, to_string(dtype)));
      if (dtype == DType::boolean) values[i] = values[i] != 0 ? 1 : 0;
    }
  }
  return h.fortran && h.shape.rank() > 1 ? from_fortran(t) : t;
}

Result<Bytes> write_npy(const Tensor& tensor) {
  std::vector<std::u32string> texts;
  std::size_t width = 1;
  std::string descr;
  if (tensor.dtype() == DType::string) {
    for (const auto& text : tensor.data<std::string>()) {
      texts.push_back(code_points(text));
      width = std::max(width, texts.back().size());
    }
    if (width > kTextMax || texts.size() > kTensorBytesMax / (4 * width))
      return invalid("the strings are too long for an array of fixed width");
    descr = format("<U{}", width);
  } else {
    auto found = std::ranges::find(kDescrs, carrier(tensor.dtype()), &Descr::dtype);
    if (found == std::end(kDescrs)) return invalid(format("a tensor of {} cannot be written", to_string(tensor.dtype())));
    descr = format("{}{}", size_of(tensor.dtype()) == 1 ? '|' : '<', found->code);
  }
  std::string shape;
  for (std::int64_t d : tensor.shape()) shape += format("{}{},", shape.empty() ? "" : " ", d);
  if (tensor.shape().rank() > 1) shape.pop_back();
  std::string header = format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", descr, shape);
  header.append(63 - (kMagic.size() + 4 + header.size()) % 64, ' ');
  header.push_back('\n');
  Bytes out;
  out.insert(out.end(), kMagic.begin(), kMagic.end());
  out.push_back(1);
  out.push_back(0);
  out.push_back(static_cast<std::uint8_t>(header.size() & 0xFFU));
  out.push_back(static_cast<std::uint8_t>(header.size() >> 8));
  out.insert(out.end(), header.begin(), header.end());
  if (tensor.dtype() != DType::string) {
    const auto* values = static_cast<const std::uint8_t*>(tensor.raw());
    out.insert(out.end(), values, values + tensor.bytes());
    return out;
  }
  std::size_t at = out.size();
  out.resize(at + texts.size() * width * 4, 0);
  for (const auto& text : texts) {
    if (!text.empty()) std::memcpy(out.data() + at, text.data(), text.size() * 4);
    at += width * 4;
  }
  return out;
}

}  // namespace falaj::kernels
