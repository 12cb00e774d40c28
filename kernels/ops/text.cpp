// Texts: StringConcat StringSplit StringNormalizer TfIdfVectorizer.
#include <algorithm>
#include <map>
#include <set>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// --- StringConcat -----------------------------------------------------------------------------------------------------------

Status infer_join(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::string}));
  FALAJ_TRY(check_same_dtype(call, 0, 1));
  FALAJ_ASSIGN(Shape shape, broadcast(call.in(0).shape, call.in(1).shape));
  return set_output(call, 0, DType::string, shape);
}
Result<KernelPtr> make_join(const KernelCall& c) {
  return dispatch<std::string>(c.in(0).dtype,
                               [&]<class T>() { return binary_kernel<T>(c, [](const T& a, const T& b) -> T { return a + b; }); });
}

// --- StringSplit ------------------------------------------------------------------------------------------------------------

// An empty delimiter stands for runs of white space, of which those at the ends do not count.
std::vector<std::string> split(std::string_view text, std::string_view delimiter, std::int64_t most) {
  constexpr std::string_view kSpace = " \t\n\r\f\v";
  std::vector<std::string> parts;
  bool space = delimiter.empty();
  while (true) {
    if (space) text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    if (space && text.empty()) return parts;
    std::size_t at = space ? text.find_first_of(kSpace) : text.find(delimiter);
    if (at == std::string_view::npos || static_cast<std::int64_t>(parts.size()) == most) {
      if (space) text = text.substr(0, text.find_last_not_of(kSpace) + 1);
      parts.emplace_back(text);
      return parts;
    }
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at + (space ? 1 : delimiter.size()));
  }
}
Result<std::vector<Value>> eager_split(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  if (x.dtype() != DType::string) return invalid("the input must be strings");
  if (x.shape().rank() == kRankMax) return invalid("the result has too many dimensions");
  FALAJ_ASSIGN(auto delimiter, attr_string(call.node(), "delimiter", ""));
  FALAJ_ASSIGN(auto most, attr_int(call.node(), "maxsplit", std::numeric_limits<std::int64_t>::max()));
  std::vector<std::vector<std::string>> all;
  std::size_t width = 0;
  Tensor counts(DType::i64, x.shape());
  for (const auto& text : x.data<std::string>()) {
    all.push_back(split(text, delimiter, most));
    width = std::max(width, all.back().size());
    counts.mutable_data<std::int64_t>()[all.size() - 1] = static_cast<std::int64_t>(all.back().size());
  }
  Shape shape = x.shape();
  shape.push_back(static_cast<std::int64_t>(width));
  if (auto bytes = byte_size(DType::string, shape); !bytes) return std::move(bytes).error();
  Tensor out(DType::string, shape);
  for (std::size_t i = 0; i < all.size(); ++i)
    std::ranges::move(all[i], out.mutable_data<std::string>().begin() + static_cast<std::ptrdiff_t>(i * width));
  return std::vector<Value>{Value(out), Value(counts)};
}

// --- StringNormalizer ---------------------------------------------------------------------------------------------------------

// ASCII only, and Latin-1 letters in UTF-8: what the "C" and "en_US" locales agree on. Other letters stay as they are.
std::string with_case(std::string text, bool upper) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    char& c = text[i];
    if (upper ? (c >= 'a' && c <= 'z') : (c >= 'A' && c <= 'Z')) {
      c = static_cast<char>(c ^ 0x20);
    } else if (static_cast<unsigned char>(c) == 0xC3 && i + 1 < text.size()) {
      auto next = static_cast<unsigned char>(text[++i]);
      bool letter = (next & 0x1FU) != 0x17 && (next & 0x1FU) != 0x1F;
      if (letter && (upper ? next >= 0xA0 && next <= 0xBE : next >= 0x80 && next <= 0x9E)) text[i] = static_cast<char>(next ^ 0x20U);
    }
  }
  return text;
}
Result<std::vector<Value>> eager_normalise(EagerCall& call) {
  FALAJ_ASSIGN(Tensor x, call.tensor(0));
  const Shape& in = x.shape();
  if (x.dtype() != DType::string || (in.rank() != 1 && !(in.rank() == 2 && in[0] == 1)))
    return invalid(format("the input {} must be strings [C] or [1, C]", to_string(in)));
  FALAJ_ASSIGN(auto action, attr_string(call.node(), "case_change_action", "NONE"));
  FALAJ_ASSIGN(auto sensitive, attr_int(call.node(), "is_case_sensitive", 0));
  FALAJ_ASSIGN(auto stopwords, attr_strings(call.node(), "stopwords", std::vector<std::string>{}));
  if (action != "NONE" && action != "LOWER" && action != "UPPER") return invalid(format("attribute 'case_change_action' is '{}'", action));
  std::set<std::string> stops;
  for (const auto& word : stopwords) stops.insert(sensitive != 0 ? word : with_case(word, false));
  std::vector<std::string> kept;
  for (const auto& text : x.data<std::string>()) {
    if (stops.contains(sensitive != 0 ? text : with_case(text, false))) continue;
    kept.push_back(action == "NONE" ? text : with_case(text, action == "UPPER"));
  }
  if (kept.empty()) kept.emplace_back();  // the standard wants one empty string then
  auto n = static_cast<std::int64_t>(kept.size());
  return std::vector<Value>{Value(Tensor::of<std::string>(in.rank() == 1 ? Shape{n} : Shape{1, n}, std::span<const std::string>(kept)))};
}

// --- TfIdfVectorizer ------------------------------------------------------------------------------------------------------------

struct Vectorizer {
  std::int64_t shortest = 1, longest = 1, skips = 0, width = 0;
  std::string mode;
  std::vector<float> weights;
  std::map<std::vector<std::int64_t>, std::int64_t> numbers;  // n-gram -> its number in the pool
  std::map<std::vector<std::string>, std::int64_t> texts;
  std::vector<std::int64_t> columns;  // of each n-gram
};
template <class T>
Status fill_pool(const std::vector<T>& pool, const std::vector<std::int64_t>& starts, std::map<std::vector<T>, std::int64_t>& grams) {
  std::int64_t number = 0;
  for (std::size_t k = 0; k < starts.size(); ++k) {
    std::int64_t end = k + 1 < starts.size() ? starts[k + 1] : static_cast<std::int64_t>(pool.size());
    auto length = static_cast<std::int64_t>(k) + 1;
    if (starts[k] < 0 || end < starts[k] || end > static_cast<std::int64_t>(pool.size()) || (end - starts[k]) % length != 0)
      return invalid("attribute 'ngram_counts' does not fit the pool");
    for (std::int64_t at = starts[k]; at < end; at += length)
      grams.emplace(std::vector<T>(pool.begin() + at, pool.begin() + at + length), number++);
  }
  return {};
}
Result<Vectorizer> vectorizer(const Node& node) {
  Vectorizer v;
  FALAJ_ASSIGN(v.shortest, attr_int(node, "min_gram_length"));
  FALAJ_ASSIGN(v.longest, attr_int(node, "max_gram_length"));
  FALAJ_ASSIGN(v.skips, attr_int(node, "max_skip_count"));
  FALAJ_ASSIGN(v.mode, attr_string(node, "mode"));
  FALAJ_ASSIGN(auto starts, attr_ints(node, "ngram_counts"));
  FALAJ_ASSIGN(v.columns, attr_ints(node, "ngram_indexes"));
  FALAJ_ASSIGN(v.weights, attr_floats(node, "weights", std::vector<float>{}));
  if (v.mode != "TF" && v.mode != "IDF" && v.mode != "TFIDF") return invalid(format("attribute 'mode' is '{}'", v.mode));
  if (v.shortest < 1 || v.longest < v.shortest || v.longest > 64 || v.skips < 0 || v.skips > 4096)
    return invalid("the lengths of n-grams are out of range");
  if (node.attributes.contains("pool_strings")) {
    FALAJ_ASSIGN(auto pool, attr_strings(node, "pool_strings"));
    FALAJ_TRY(fill_pool(pool, starts, v.texts));
  } else {
    FALAJ_ASSIGN(auto pool, attr_ints(node, "pool_int64s"));
    FALAJ_TRY(fill_pool(pool, starts, v.numbers));
  }
  for (auto column : v.columns) {
    if (column < 0 || column > (1 << 28)) return invalid("attribute 'ngram_indexes' has a value out of range");
    v.width = std::max(v.width, column + 1);
  }
  if (v.columns.size() < std::max(v.texts.size(), v.numbers.size()) || (!v.weights.empty() && v.weights.size() < v.columns.size()))
    return invalid("the attributes of the n-grams differ in length");
  return v;
}
Status infer_vectorize(InferCall& call) {
  FALAJ_ASSIGN(auto v, vectorizer(call.node));
  const Shape& in = call.in(0).shape;
  if (in.rank() != 1 && in.rank() != 2) return invalid(format("the input {} must be [C] or [N, C]", to_string(in)));
  FALAJ_TRY(check_dtype(call, 0, {DType::string, DType::i64, DType::i32}));
  if ((call.in(0).dtype == DType::string) != v.numbers.empty()) return invalid("the input does not have the pool's type");
  return set_output(call, 0, DType::f32, in.rank() == 1 ? Shape{v.width} : Shape{in[0], v.width});
}
template <class T, class Read>
void count_grams(const Vectorizer& v, const std::map<std::vector<T>, std::int64_t>& grams, std::int64_t n, Read read, float* y) {
  std::fill_n(y, v.width, 0.0F);
  std::vector<std::int64_t> counts(v.columns.size(), 0);
  std::vector<T> gram;
  for (std::int64_t skip = 0; skip <= v.skips; ++skip) {
    for (std::int64_t length = v.shortest; length <= v.longest; ++length) {
      if (length == 1 && skip > 0) continue;  // nothing to skip between
      for (std::int64_t at = 0; at + (length - 1) * (skip + 1) < n; ++at) {
        gram.clear();
        for (std::int64_t k = 0; k < length; ++k) gram.push_back(read(at + k * (skip + 1)));
        if (auto found = grams.find(gram); found != grams.end()) ++counts[static_cast<std::size_t>(found->second)];
      }
    }
  }
  for (std::size_t g = 0; g < counts.size(); ++g) {
    if (counts[g] == 0) continue;
    float weight = v.weights.empty() ? 1.0F : v.weights[g];
    y[v.columns[g]] += v.mode == "TF" ? static_cast<float>(counts[g]) : (v.mode == "IDF" ? weight : weight * static_cast<float>(counts[g]));
  }
}
Result<KernelPtr> make_vectorize(const KernelCall& c) {
  FALAJ_ASSIGN(auto v, vectorizer(c.node));
  const Shape& in = c.in(0).shape;
  return make_kernel([v, dtype = c.in(0).dtype, rows = in.rank() == 1 ? 1 : in[0], n = in.back()](const Io& io) {
    for (std::int64_t r = 0; r < rows; ++r) {
      float* y = io.output<float>(0) + r * v.width;
      if (dtype == DType::string) {
        count_grams(v, v.texts, n, [&](std::int64_t i) { return io.input<std::string>(0)[r * n + i]; }, y);
      } else {
        count_grams(v, v.numbers, n, [&](std::int64_t i) { return index_at(io, 0, dtype == DType::i64, r * n + i); }, y);
      }
    }
  });
}

constexpr OpDef kOps[] = {
    {kOnnx, "StringConcat", 2, 2, 1, 1, infer_join, make_join},
    eager_op(kOnnx, "StringSplit", 1, 1, 1, 2, eager_split),
    eager_op(kOnnx, "StringNormalizer", 1, 1, 1, 1, eager_normalise),
    {kOnnx, "TfIdfVectorizer", 1, 1, 1, 1, infer_vectorize, make_vectorize},
};

}  // namespace

std::span<const OpDef> text_ops() { return kOps; }

}  // namespace falaj::kernels
