#include "kernels/compiled_file.hpp"

#include <cstring>
#include <map>

#include "kernels/codec.hpp"
#include "kernels/plan_impl.hpp"

namespace falaj::kernels {
namespace {

constexpr std::string_view kMagic = "FALAJCMP";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kOpening = kMagic.size() + sizeof(std::uint32_t) + sizeof(std::uint64_t);
constexpr std::size_t kPage = 4096;
constexpr std::size_t kAlign = 64;

constexpr std::size_t up(std::size_t size, std::size_t step) { return (size + step - 1) / step * step; }

// --- writing ----------------------------------------------------------------------------------------------------------------

class HeadWriter {
 public:
  Bytes write(const Compiled& compiled, std::string_view key) {
    out_.text(key);
    graph(compiled.graph());
    list(notes_of(compiled), [this](const std::string& note) { out_.text(note); });
    std::map<const void*, std::string_view> names;
    for (const auto& [name, value] : compiled.graph().initializers) names.emplace(value.raw(), name);
    struct Form {
      std::string_view source;
      std::string layout;
      std::shared_ptr<const Tensor> packed;
    };
    std::vector<Form> forms;
    compiled.packed()->each([&](const Tensor& source, const std::string& layout, const std::shared_ptr<const Tensor>& packed) {
      if (const auto found = names.find(source.raw()); found != names.end()) forms.push_back({found->second, layout, packed});
    });
    list(forms, [this](const Form& form) {
      out_.text(form.source);
      out_.text(form.layout);
      tensor(*form.packed);
    });
    return out_.finish();
  }
  [[nodiscard]] const std::vector<Tensor>& data() const { return data_; }

 private:
  template <class List, class Put>
  void list(const List& all, Put put) {
    out_.number(static_cast<std::uint64_t>(all.size()));
    for (const auto& one : all) put(one);
  }
  void texts(const std::vector<std::string>& all) {
    list(all, [this](const std::string& text) { out_.text(text); });
  }
  void shape(const Shape& shape) {
    list(shape.dims(), [this](std::int64_t d) { out_.number(d); });
  }
  void tensor(const Tensor& t) {
    out_.number(static_cast<std::uint8_t>(t.dtype()));
    shape(t.shape());
    if (t.dtype() == DType::string) {
      for (const auto& text : t.data<std::string>()) out_.text(text);
      return;
    }
    const auto [at, fresh] = places_.try_emplace({t.raw(), t.bytes()}, end_);
    if (fresh) {
      data_.push_back(t);
      end_ += up(t.bytes(), kAlign);
    }
    out_.number(at->second);
  }
  void info(const ValueInfo& info) {
    out_.text(info.name);
    out_.number(static_cast<std::uint8_t>(info.dtype));
    shape(info.shape);
    texts(info.symbols);
    out_.number(static_cast<std::uint8_t>(info.has_shape ? 1 : 0));
    out_.number(static_cast<std::uint8_t>(info.kind));
  }
  void value(const Attribute& attribute) {
    out_.number(static_cast<std::uint8_t>(attribute.index()));
    if (const auto* i = std::get_if<std::int64_t>(&attribute)) out_.number(*i);
    if (const auto* f = std::get_if<float>(&attribute)) out_.number(*f);
    if (const auto* s = std::get_if<std::string>(&attribute)) out_.text(*s);
    if (const auto* ints = std::get_if<std::vector<std::int64_t>>(&attribute)) list(*ints, [this](std::int64_t v) { out_.number(v); });
    if (const auto* floats = std::get_if<std::vector<float>>(&attribute)) out_.floats(*floats);
    if (const auto* strings = std::get_if<std::vector<std::string>>(&attribute)) texts(*strings);
    if (const auto* t = std::get_if<Tensor>(&attribute)) tensor(*t);
    if (const auto* body = std::get_if<Subgraph>(&attribute)) graph(**body);
  }
  void node(const Node& node) {
    out_.text(node.op);
    out_.text(node.domain);
    out_.text(node.name);
    texts(node.inputs);
    texts(node.outputs);
    list(node.attributes, [this](const auto& entry) {
      out_.text(entry.first);
      value(entry.second);
    });
    texts(node.captures);
  }
  void graph(const Graph& graph) {
    out_.text(graph.name);
    list(graph.inputs, [this](const ValueInfo& i) { info(i); });
    list(graph.outputs, [this](const ValueInfo& i) { info(i); });
    list(graph.nodes, [this](const Node& n) { node(n); });
    list(graph.initializers, [this](const auto& entry) {
      out_.text(entry.first);
      tensor(entry.second);
    });
    list(graph.metadata, [this](const auto& entry) {
      out_.text(entry.first);
      out_.text(entry.second);
    });
    list(graph.opsets, [this](const auto& entry) {
      out_.text(entry.first);
      out_.number(entry.second);
    });
  }

  Writer out_;
  std::map<std::pair<const void*, std::size_t>, std::uint64_t> places_;  // by address and size: views share addresses
  std::vector<Tensor> data_;
  std::uint64_t end_ = 0;
};

Status pad(const ByteSink& sink, std::size_t written, std::size_t step) {
  static constexpr std::uint8_t kZeros[kPage] = {};
  return sink(ByteView(kZeros).first(up(written, step) - written));
}

// --- reading ----------------------------------------------------------------------------------------------------------------

class HeadReader {
 public:
  HeadReader(Reader in, const ModelBytes& file, ByteView data) : in_(std::move(in)), file_(file), data_(data) {}

  Status key(std::string_view wanted) {
    if (in_.text() == wanted) return {};
    return error(ErrorCode::conflict, "the file is of another model, of other options, or for another processor or program");
  }
  Result<Graph> graph(int depth = 0) {
    Graph graph;
    if (depth > kSubgraphDepthMax) return invalid(format("graphs are nested deeper than {}", kSubgraphDepthMax));
    graph.name = in_.text();
    FALAJ_TRY(list([&] { return info(graph.inputs.emplace_back()); }));
    FALAJ_TRY(list([&] { return info(graph.outputs.emplace_back()); }));
    FALAJ_TRY(list([&] { return node(graph.nodes.emplace_back(), depth); }));
    FALAJ_TRY(list([&]() -> Status {
      auto name = in_.text();
      FALAJ_ASSIGN(auto value, tensor());
      graph.initializers.emplace(std::move(name), std::move(value));
      return {};
    }));
    FALAJ_TRY(list([&]() -> Status {
      auto name = in_.text();
      graph.metadata.emplace(std::move(name), in_.text());
      return {};
    }));
    graph.opsets.clear();
    FALAJ_TRY(list([&]() -> Status {
      auto name = in_.text();
      graph.opsets.emplace(std::move(name), in_.number<std::int64_t>());
      return {};
    }));
    return graph;
  }
  Result<std::vector<std::string>> texts() {
    std::vector<std::string> all;
    FALAJ_TRY(list([&]() -> Status {
      all.push_back(in_.text());
      return {};
    }));
    return all;
  }
  Status packed(const Graph& graph, PackedWeights& into) {
    return list([&]() -> Status {
      const auto source = in_.text();
      const auto layout = in_.text();
      FALAJ_ASSIGN(auto form, tensor());
      const auto found = graph.initializers.find(source);
      if (found == graph.initializers.end()) return invalid(format("packed weights of '{}', which there is not", source));
      into.put(found->second, layout, std::move(form));
      return {};
    });
  }
  [[nodiscard]] Status finish() const { return in_.finish(); }

 private:
  template <class Take>
  Status list(Take take) {
    for (auto left = in_.number<std::uint64_t>(); left > 0; --left) {
      FALAJ_TRY(take());
      if (!in_.ok()) return in_.finish();
    }
    return {};
  }
  Result<DType> dtype() {
    const auto code = in_.number<std::uint8_t>();
    if (code > static_cast<std::uint8_t>(DType::u4)) return invalid(format("element type {} is none", code));
    return static_cast<DType>(code);
  }
  Result<Shape> shape() {
    Shape shape;
    FALAJ_TRY(list([&]() -> Status {
      if (shape.rank() == kRankMax) return invalid("a shape has too many dimensions");
      shape.push_back(in_.number<std::int64_t>());
      return {};
    }));
    return shape;
  }
  Result<Tensor> tensor() {
    FALAJ_ASSIGN(const DType type, dtype());
    FALAJ_ASSIGN(const Shape dims, shape());
    FALAJ_ASSIGN(const auto bytes, byte_size(type, dims));
    if (type == DType::string) {
      if (static_cast<std::size_t>(dims.elements()) > data_.size() + kPage)
        return invalid("a tensor has more strings than the file has bytes");
      Tensor t(type, dims);
      for (auto& text : t.mutable_data<std::string>()) text = in_.text();
      return t;
    }
    const auto at = in_.number<std::uint64_t>();
    if (at % kAlign != 0 || at > data_.size() || bytes > data_.size() - at)
      return invalid(format("a tensor of {} bytes at {}: the file has {}", bytes, at, data_.size()));
    return Tensor::adopt(type, dims, std::const_pointer_cast<void>(file_.storage), const_cast<std::uint8_t*>(data_.data() + at));
  }
  Status info(ValueInfo& info) {
    info.name = in_.text();
    FALAJ_ASSIGN(info.dtype, dtype());
    FALAJ_ASSIGN(info.shape, shape());
    FALAJ_ASSIGN(info.symbols, texts());
    info.has_shape = in_.number<std::uint8_t>() != 0;
    const auto kind = in_.number<std::uint8_t>();
    if (kind > static_cast<std::uint8_t>(ValueKind::optional)) return invalid(format("'{}' is of no known kind", info.name));
    info.kind = static_cast<ValueKind>(kind);
    return {};
  }
  Result<Attribute> value(int depth) {
    switch (in_.number<std::uint8_t>()) {
      case 0:
        return Attribute{in_.number<std::int64_t>()};
      case 1:
        return Attribute{in_.number<float>()};
      case 2:
        return Attribute{in_.text()};
      case 3: {
        std::vector<std::int64_t> ints;
        FALAJ_TRY(list([&]() -> Status {
          ints.push_back(in_.number<std::int64_t>());
          return {};
        }));
        return Attribute{std::move(ints)};
      }
      case 4:
        return Attribute{in_.floats()};
      case 5: {
        FALAJ_ASSIGN(auto all, texts());
        return Attribute{std::move(all)};
      }
      case 6: {
        FALAJ_ASSIGN(auto t, tensor());
        return Attribute{std::move(t)};
      }
      case 7: {
        FALAJ_ASSIGN(auto body, graph(depth + 1));
        return Attribute{Subgraph(std::make_shared<const Graph>(std::move(body)))};
      }
      default:
        return invalid("an attribute is of no known kind");
    }
  }
  Status node(Node& node, int depth) {
    node.op = in_.text();
    node.domain = in_.text();
    node.name = in_.text();
    FALAJ_ASSIGN(node.inputs, texts());
    FALAJ_ASSIGN(node.outputs, texts());
    FALAJ_TRY(list([&]() -> Status {
      auto name = in_.text();
      FALAJ_ASSIGN(auto attribute, value(depth));
      node.attributes.emplace(std::move(name), std::move(attribute));
      return {};
    }));
    FALAJ_ASSIGN(node.captures, texts());
    return {};
  }

  Reader in_;
  const ModelBytes& file_;
  ByteView data_;
};

Error damaged(std::string_view what) { return error(ErrorCode::corrupt, format("the compiled model is damaged: {}", what)); }

}  // namespace

Status write_compiled(const Compiled& compiled, std::string_view key, const ByteSink& sink) {
  HeadWriter writer;
  const Bytes head = writer.write(compiled, key);
  Bytes opening(kMagic.begin(), kMagic.end());
  const std::uint64_t length = head.size();
  for (int i = 0; i < 4; ++i) opening.push_back(static_cast<std::uint8_t>(kVersion >> (8 * i)));
  for (int i = 0; i < 8; ++i) opening.push_back(static_cast<std::uint8_t>(length >> (8 * i)));
  FALAJ_TRY(sink(opening));
  FALAJ_TRY(sink(head));
  FALAJ_TRY(pad(sink, kOpening + head.size(), kPage));
  for (const Tensor& t : writer.data()) {
    FALAJ_TRY(sink({static_cast<const std::uint8_t*>(t.raw()), t.bytes()}));
    FALAJ_TRY(pad(sink, t.bytes(), kAlign));
  }
  return {};
}

Result<std::shared_ptr<const Compiled>> read_compiled(ModelBytes file, std::string_view key, CompileOptions options) {
  const ByteView all = file.view;
  if (all.size() < kOpening || as_text(all.first(kMagic.size())) != kMagic) return damaged("it does not begin as one");
  std::uint32_t version = 0;
  std::uint64_t length = 0;
  std::memcpy(&version, all.data() + kMagic.size(), sizeof version);
  std::memcpy(&length, all.data() + kMagic.size() + sizeof version, sizeof length);
  if (version != kVersion) return error(ErrorCode::conflict, format("its version is {}; {} is read", version, kVersion));
  if (length > all.size() - kOpening || up(kOpening + length, kPage) > all.size()) return damaged("it is shorter than its head says");
  FALAJ_ASSIGN(auto in, Reader::open(all.subspan(kOpening, length), "the compiled model"));
  HeadReader reader(std::move(in), file, all.subspan(up(kOpening + length, kPage)));
  FALAJ_TRY(reader.key(key));
  auto graph = reader.graph();
  if (!graph) return damaged(graph.error().message);
  auto notes = reader.texts();
  if (!notes) return damaged(notes.error().message);
  auto packed = std::make_shared<PackedWeights>();
  if (auto status = reader.packed(*graph, *packed); !status) return damaged(status.error().message);
  if (auto status = reader.finish(); !status) return damaged(status.error().message);
  if (auto status = validate(*graph); !status) return damaged(status.error().message);
  options.packed = std::move(packed);
  return compiled_from(std::move(*graph), std::move(options), std::move(*notes));
}

}  // namespace falaj::kernels
