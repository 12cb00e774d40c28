// Preprocessing of ai.onnx.ml: LabelEncoder OneHotEncoder Scaler Imputer Normalizer ZipMap.
#include <bit>
#include <cmath>
#include <unordered_map>

#include "kernels/ops/common.hpp"

namespace falaj::kernels {
namespace {

// --- a dictionary made once, read in every run --------------------------------------------------------------------------------

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15ULL;
  return x ^ (x >> 29);
}
std::uint64_t hash_of(std::int64_t key) { return mix(static_cast<std::uint64_t>(key)); }
std::uint64_t hash_of(float key) {
  if (std::isnan(key)) return 1;
  return mix(std::bit_cast<std::uint32_t>(key == 0.0F ? 0.0F : key));
}
std::uint64_t hash_of(const std::string& key) {
  std::uint64_t h = key.size() * 0x9E3779B97F4A7C15ULL;
  const char* at = key.data();
  std::size_t left = key.size();
  for (; left >= 8; left -= 8, at += 8) {
    std::uint64_t word;
    std::memcpy(&word, at, 8);
    h = mix(h ^ word) * 0xBF58476D1CE4E5B9ULL;
  }
  std::uint64_t tail = 0;
  std::memcpy(&tail, at, left);
  return mix(h ^ tail);
}
template <class K>
bool same_key(const K& a, const K& b) {
  if constexpr (std::is_same_v<K, float>) {
    if (std::isnan(a)) return std::isnan(b);
  }
  return a == b;
}

// Open addressing, at most half full; of equal keys the first wins.
template <class K>
class Dictionary {
 public:
  explicit Dictionary(std::span<const K> keys) : keys_(keys.begin(), keys.end()) {
    slots_.assign(std::bit_ceil(keys_.size() * 2 + 1), -1);
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      std::size_t at = hash_of(keys_[i]) & (slots_.size() - 1);
      while (slots_[at] >= 0 && !same_key(keys_[static_cast<std::size_t>(slots_[at])], keys_[i])) at = (at + 1) & (slots_.size() - 1);
      if (slots_[at] < 0) slots_[at] = static_cast<std::int64_t>(i);
    }
  }
  [[nodiscard]] std::int64_t find(const K& key) const {  // index of the key, -1: unknown
    for (std::size_t at = hash_of(key) & (slots_.size() - 1); slots_[at] >= 0; at = (at + 1) & (slots_.size() - 1)) {
      if (same_key(keys_[static_cast<std::size_t>(slots_[at])], key)) return slots_[at];
    }
    return -1;
  }

 private:
  std::vector<K> keys_;
  std::vector<std::int64_t> slots_;
};

// --- LabelEncoder -----------------------------------------------------------------------------------------------------------

template <class T>
Tensor list_tensor(const std::vector<T>& values) {
  return Tensor::of<T>({static_cast<std::int64_t>(values.size())}, std::span(values));
}

// keys_<type>s / values_<type>s, or keys_tensor / values_tensor.
Result<Tensor> label_list(const Node& node, std::string_view stem) {
  if (const Tensor* tensor = attr_tensor(node, format("{}_tensor", stem))) return *tensor;
  if (node.attributes.contains(format("{}_strings", stem))) {
    FALAJ_ASSIGN(auto list, attr_strings(node, format("{}_strings", stem)));
    return list_tensor(list);
  }
  if (node.attributes.contains(format("{}_int64s", stem))) {
    FALAJ_ASSIGN(auto list, attr_ints(node, format("{}_int64s", stem)));
    return list_tensor(list);
  }
  if (node.attributes.contains(format("{}_floats", stem))) {
    FALAJ_ASSIGN(auto list, attr_floats(node, format("{}_floats", stem)));
    return list_tensor(list);
  }
  return invalid(format("one of the attributes {0}_strings, {0}_int64s, {0}_floats is needed", stem));
}

struct Labels {
  Tensor keys, values, fallback;  // fallback: one element of the values' type
};
Result<Labels> labels(const Node& node) {
  Labels l;
  FALAJ_ASSIGN(l.keys, label_list(node, "keys"));
  FALAJ_ASSIGN(l.values, label_list(node, "values"));
  if (l.keys.elements() != l.values.elements()) return invalid(format("{} keys and {} values", l.keys.elements(), l.values.elements()));
  if (const Tensor* given = attr_tensor(node, "default_tensor")) {
    if (given->dtype() != l.values.dtype() || given->elements() != 1)
      return invalid("default_tensor must be one element of the values' type");
    l.fallback = *given;
    return l;
  }
  switch (l.values.dtype()) {
    case DType::string: {
      FALAJ_ASSIGN(auto v, attr_string(node, "default_string", "_Unused"));
      l.fallback = Tensor::scalar<std::string>(v);
      break;
    }
    case DType::i64: {
      FALAJ_ASSIGN(auto v, attr_int(node, "default_int64", -1));
      l.fallback = Tensor::scalar<std::int64_t>(v);
      break;
    }
    case DType::f32: {
      FALAJ_ASSIGN(auto v, attr_float(node, "default_float", -0.0));
      l.fallback = Tensor::scalar<float>(static_cast<float>(v));
      break;
    }
    default:
      return Error{ErrorCode::unimplemented, format("values of type {} are not supported", to_string(l.values.dtype()))};
  }
  return l;
}

Status infer_labels(InferCall& call, const Labels& l) {
  if (call.in(0).dtype != l.keys.dtype())
    return invalid(
        format("input '{}' is {}, but the keys are {}", call.node.inputs[0], to_string(call.in(0).dtype), to_string(l.keys.dtype())));
  return set_output(call, 0, l.values.dtype(), call.in(0).shape);
}
Result<KernelPtr> make_labels(const KernelCall& c, const Labels& l) {
  auto n = c.in(0).shape.elements();
  return dispatch<std::string, std::int64_t, float>(l.keys.dtype(), [&]<class K>() -> Result<KernelPtr> {
    return dispatch<std::string, std::int64_t, float>(l.values.dtype(), [&]<class V>() {
      auto values = l.values.data<V>();
      return make_kernel([n, dictionary = Dictionary<K>(l.keys.data<K>()), list = std::vector<V>(values.begin(), values.end()),
                          fallback = l.fallback.data<V>()[0]](const Io& io) {
        const K* x = io.input<K>(0);
        V* y = io.output<V>(0);
        for (std::int64_t i = 0; i < n; ++i) {
          auto at = dictionary.find(x[i]);
          y[i] = at < 0 ? fallback : list[static_cast<std::size_t>(at)];
        }
      });
    });
  });
}

Status infer_label(InferCall& call) {
  FALAJ_ASSIGN(auto l, labels(call.node));
  return infer_labels(call, l);
}
Result<KernelPtr> make_label(const KernelCall& c) {
  FALAJ_ASSIGN(auto l, labels(c.node));
  return make_labels(c, l);
}

// --- CategoryMapper ---------------------------------------------------------------------------------------------------------

// One list of texts and one of numbers: each is the other's key.
Result<Labels> categories_both_ways(const OpCall& call) {
  FALAJ_ASSIGN(const auto texts, attr_strings(call.node, "cats_strings"));
  FALAJ_ASSIGN(const auto numbers, attr_ints(call.node, "cats_int64s"));
  if (texts.size() != numbers.size()) return invalid(format("{} cats_strings and {} cats_int64s", texts.size(), numbers.size()));
  if (call.in(0).dtype == DType::string) {
    FALAJ_ASSIGN(const auto other, attr_int(call.node, "default_int64", -1));
    return Labels{list_tensor(texts), list_tensor(numbers), Tensor::scalar<std::int64_t>(other)};
  }
  FALAJ_ASSIGN(const auto other, attr_string(call.node, "default_string", "_Unused"));
  return Labels{list_tensor(numbers), list_tensor(texts), Tensor::scalar<std::string>(other)};
}
Status infer_mapper(InferCall& call) {
  FALAJ_ASSIGN(auto l, categories_both_ways(call));
  return infer_labels(call, l);
}
Result<KernelPtr> make_mapper(const KernelCall& c) {
  FALAJ_ASSIGN(auto l, categories_both_ways(c));
  return make_labels(c, l);
}

// --- OneHotEncoder ----------------------------------------------------------------------------------------------------------

Result<Tensor> categories(const OpCall& call) {
  if (call.in(0).dtype == DType::string) {
    FALAJ_ASSIGN(auto list, attr_strings(call.node, "cats_strings"));
    return list_tensor(list);
  }
  FALAJ_ASSIGN(auto list, attr_ints(call.node, "cats_int64s"));
  return list_tensor(list);
}
Status infer_one_hot(InferCall& call) {
  FALAJ_TRY(check_dtype(call, 0, {DType::string, DType::i64, DType::i32, DType::f32, DType::f64}));
  FALAJ_ASSIGN(Tensor cats, categories(call));
  Shape out = call.in(0).shape;
  if (out.rank() == kRankMax) return invalid("the result has too many dimensions");
  out.push_back(static_cast<std::int64_t>(cats.elements()));
  return set_output(call, 0, DType::f32, out);
}
Result<KernelPtr> make_one_hot(const KernelCall& c) {
  FALAJ_ASSIGN(Tensor cats, categories(c));
  FALAJ_ASSIGN(auto zeros, attr_int(c.node, "zeros", 1));
  return dispatch<std::string, std::int64_t, std::int32_t, float, double>(c.in(0).dtype, [&]<class T>() {
    using K = std::conditional_t<std::is_same_v<T, std::string>, std::string, std::int64_t>;
    return make_kernel([n = c.in(0).shape.elements(), width = static_cast<std::int64_t>(cats.elements()),
                        dictionary = Dictionary<K>(cats.data<K>()), zeros](const Io& io) {
      const T* x = io.input<T>(0);
      auto* y = io.output<float>(0);
      std::fill_n(y, n * width, 0.0F);
      for (std::int64_t i = 0; i < n; ++i) {
        std::int64_t at = -1;
        if constexpr (std::is_floating_point_v<T>) {
          if (std::abs(x[i]) < T{9e18}) at = dictionary.find(static_cast<std::int64_t>(x[i]));  // false for NaN
        } else if constexpr (std::is_same_v<T, std::string>) {
          at = dictionary.find(x[i]);
        } else {
          at = dictionary.find(static_cast<std::int64_t>(x[i]));
        }
        if (at >= 0) {
          y[i * width + at] = 1.0F;
        } else if (zeros == 0) {
          return io.fail(format("the value at position {} is no known category, and 'zeros' is 0", i));
        }
      }
    });
  });
}

// --- Scaler, Imputer, Normalizer: rows of columns --------------------------------------------------------------------------------

std::int64_t columns(const Shape& shape) { return shape.rank() == 0 ? 1 : shape.back(); }

Status check_list(const std::vector<float>& list, std::int64_t width, std::string_view name) {
  auto n = static_cast<std::int64_t>(list.size());
  if (n > 0 && (n == 1 || n == width)) return {};
  return invalid(format("attribute '{}' has {} values; it must have 1 or {}", name, n, width));
}
struct Scaling {
  std::vector<float> offset, scale;
};
Result<Scaling> scaling(const OpCall& call) {
  Scaling s;
  FALAJ_ASSIGN(s.offset, attr_floats(call.node, "offset"));
  FALAJ_ASSIGN(s.scale, attr_floats(call.node, "scale"));
  FALAJ_TRY(check_list(s.offset, columns(call.in(0).shape), "offset"));
  FALAJ_TRY(check_list(s.scale, columns(call.in(0).shape), "scale"));
  return s;
}
Status infer_scaler(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN([[maybe_unused]] auto s, scaling(call));
  return set_output(call, 0, DType::f32, call.in(0).shape);
}
Result<KernelPtr> make_scaler(const KernelCall& c) {
  FALAJ_ASSIGN(auto s, scaling(c));
  auto width = columns(c.in(0).shape);
  s.offset.resize(static_cast<std::size_t>(std::max<std::int64_t>(width, 1)), s.offset[0]);
  s.scale.resize(static_cast<std::size_t>(std::max<std::int64_t>(width, 1)), s.scale[0]);
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([s, width, n = c.in(0).shape.elements()](const Io& io) {
      const T* x = io.input<T>(0);
      auto* y = io.output<float>(0);
      for (std::int64_t i = 0; i < n; i += width) {
        for (std::int64_t j = 0; j < width; ++j)
          y[i + j] = (static_cast<float>(x[i + j]) - s.offset[static_cast<std::size_t>(j)]) * s.scale[static_cast<std::size_t>(j)];
      }
    });
  });
}

Status infer_imputer(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  return infer_same(call);
}
Result<KernelPtr> make_imputer(const KernelCall& c) {
  auto width = columns(c.in(0).shape);
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() -> Result<KernelPtr> {
    std::vector<T> values;
    T replaced;
    if constexpr (std::is_floating_point_v<T>) {
      FALAJ_ASSIGN(auto list, attr_floats(c.node, "imputed_value_floats"));
      values.assign(list.begin(), list.end());
      FALAJ_ASSIGN(double given, attr_float(c.node, "replaced_value_float", 0.0));
      replaced = static_cast<T>(given);
    } else {
      FALAJ_ASSIGN(auto list, attr_ints(c.node, "imputed_value_int64s"));
      for (auto v : list) values.push_back(static_cast<T>(v));
      FALAJ_ASSIGN(auto given, attr_int(c.node, "replaced_value_int64", 0));
      replaced = static_cast<T>(given);
    }
    if (values.size() != 1 && static_cast<std::int64_t>(values.size()) != width)
      return invalid(format("{} imputed values for {} columns", values.size(), width));
    return make_kernel([values, replaced, width, n = c.in(0).shape.elements()](const Io& io) {
      const T* x = io.input<T>(0);
      T* y = io.output<T>(0);
      for (std::int64_t i = 0; i < n; ++i) {
        bool missing = x[i] == replaced;
        if constexpr (std::is_floating_point_v<T>) missing = missing || (std::isnan(replaced) && std::isnan(x[i]));
        y[i] = missing ? values[values.size() == 1 ? 0 : static_cast<std::size_t>(i % width)] : x[i];
      }
    });
  });
}

Status infer_normalizer(InferCall& call) {
  FALAJ_TRY(check_number(call, 0));
  FALAJ_ASSIGN(auto norm, attr_string(call.node, "norm", "MAX"));
  if (norm != "MAX" && norm != "L1" && norm != "L2") return invalid(format("attribute 'norm' is '{}'; it must be MAX, L1 or L2", norm));
  return set_output(call, 0, DType::f32, call.in(0).shape);
}
Result<KernelPtr> make_normalizer(const KernelCall& c) {
  FALAJ_ASSIGN(auto norm, attr_string(c.node, "norm", "MAX"));
  return dispatch_numeric(c.in(0).dtype, [&]<class T>() {
    return make_kernel([norm, width = columns(c.in(0).shape), n = c.in(0).shape.elements()](const Io& io) {
      const T* x = io.input<T>(0);
      auto* y = io.output<float>(0);
      for (std::int64_t i = 0; i < n; i += width) {
        double size = 0;
        for (std::int64_t j = i; j < i + width; ++j) {
          auto v = static_cast<double>(x[j]);
          size = norm == "MAX" ? (j == i ? v : std::max(size, v)) : size + (norm == "L1" ? std::abs(v) : v * v);
        }
        if (norm == "L2") size = std::sqrt(size);
        for (std::int64_t j = i; j < i + width; ++j)
          y[j] = size == 0 ? static_cast<float>(x[j]) : static_cast<float>(static_cast<double>(x[j]) / size);
      }
    });
  });
}

// --- FeatureVectorizer ------------------------------------------------------------------------------------------------------

// Columns side by side: of each input as many as `inputdimensions` says, cut off or filled up with zeros.
struct Columns {
  std::int64_t rows = 0, width = 0;
  struct Part {
    DType dtype;
    std::int64_t has, wanted;
  };
  std::vector<Part> parts;
};
Result<Columns> columns(const OpCall& call) {
  FALAJ_ASSIGN(const auto dims, attr_ints(call.node, "inputdimensions"));
  if (dims.size() != call.inputs.size()) return invalid(format("{} inputdimensions for {} inputs", dims.size(), call.inputs.size()));
  Columns c;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    FALAJ_TRY(check_number(call, i));
    const Shape& in = call.in(i).shape;
    if (in.rank() != 1 && in.rank() != 2) return invalid(format("input {} is {}; it must be [rows] or [rows, columns]", i, to_string(in)));
    if (i > 0 && in[0] != c.rows) return invalid(format("input {} has {} rows, the first one {}", i, in[0], c.rows));
    if (dims[i] < 0 || dims[i] > (std::int64_t{1} << 31)) return invalid(format("inputdimensions has {}", dims[i]));
    c.rows = in[0];
    c.width += dims[i];
    c.parts.push_back({call.in(i).dtype, in.rank() == 1 ? 1 : in[1], dims[i]});
  }
  return c;
}
Status infer_vectorizer(InferCall& call) {
  FALAJ_ASSIGN(const auto c, columns(call));
  return set_output(call, 0, DType::f32, {c.rows, c.width});
}
Result<KernelPtr> make_vectorizer(const KernelCall& call) {
  FALAJ_ASSIGN(auto c, columns(call));
  for (const auto& part : c.parts) {
    const bool known = part.dtype == DType::f32 || part.dtype == DType::f64 || part.dtype == DType::i64 || part.dtype == DType::i32;
    if (!known) return no_kernel(part.dtype);
  }
  return make_kernel([c = std::move(c)](const Io& io) {
    float* to = io.output<float>(0);
    for (std::size_t i = 0; i < c.parts.size(); ++i) {
      const auto& part = c.parts[i];
      const auto copy = [&]<class T>(const T* from) {
        for (std::int64_t r = 0; r < c.rows; ++r) {
          for (std::int64_t k = 0; k < part.wanted; ++k)
            to[r * c.width + k] = k < part.has ? static_cast<float>(from[r * part.has + k]) : 0.0F;
        }
      };
      if (part.dtype == DType::f32) copy(io.input<float>(i));
      if (part.dtype == DType::f64) copy(io.input<double>(i));
      if (part.dtype == DType::i64) copy(io.input<std::int64_t>(i));
      if (part.dtype == DType::i32) copy(io.input<std::int32_t>(i));
      to += part.wanted;
    }
  });
}

// ZipMap turns rows into maps from class to score. We have no maps: the scores pass through as they are, in the order of its labels.
Result<KernelPtr> make_zip_map(const KernelCall& c) {
  return dispatch_moving(c.in(0).dtype, [&]<class T>() { return unary_kernel<T>(c, [](const T& x) { return x; }); });
}

constexpr OpDef kOps[] = {
    {kOnnxMl, "LabelEncoder", 1, 1, 1, 1, infer_label, make_label},
    {kOnnxMl, "CategoryMapper", 1, 1, 1, 1, infer_mapper, make_mapper},
    {kOnnxMl, "FeatureVectorizer", 1, kVariadic, 1, 1, infer_vectorizer, make_vectorizer},
    {kOnnxMl, "OneHotEncoder", 1, 1, 1, 1, infer_one_hot, make_one_hot},
    {kOnnxMl, "Scaler", 1, 1, 1, 1, infer_scaler, make_scaler},
    {kOnnxMl, "Imputer", 1, 1, 1, 1, infer_imputer, make_imputer},
    {kOnnxMl, "Normalizer", 1, 1, 1, 1, infer_normalizer, make_normalizer},
    {kOnnxMl, "ZipMap", 1, 1, 1, 1, infer_same, make_zip_map, nullptr, Placement::alias},
};

}  // namespace

std::span<const OpDef> encoder_ops() { return kOps; }

}  // namespace falaj::kernels
