// The interpreter: every op that runs nowhere else, control flow, bounds on models that would take too much, and the choice between a
// plan and it.
#include "kernels/interpret.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "runtime/base/format.hpp"

namespace falaj::kernels {
namespace {

using Ints = std::vector<std::int64_t>;
using Strings = std::vector<std::string>;

Node node_of(std::string_view op, std::vector<std::string> inputs, std::vector<std::string> outputs, Attributes attributes = {}) {
  return {std::string(op), "", std::string(op), std::move(inputs), std::move(outputs), std::move(attributes)};
}
ValueInfo info(std::string name, DType dtype, ValueKind kind = ValueKind::tensor) { return {std::move(name), dtype, {}, {}, false, kind}; }
Subgraph body_of(std::vector<ValueInfo> inputs, std::vector<std::string> outputs, std::vector<Node> nodes) {
  auto graph = std::make_shared<Graph>();
  graph->name = "body";
  graph->inputs = std::move(inputs);
  for (auto& name : outputs) graph->outputs.push_back(info(std::move(name), DType::undefined));
  graph->nodes = std::move(nodes);
  return graph;
}
Value ints(std::initializer_list<std::int64_t> values) { return Tensor::vector<std::int64_t>(values); }
Value number(std::int64_t value) { return Tensor::scalar<std::int64_t>(value); }
Value floats(std::initializer_list<float> values) { return Tensor::vector<float>(values); }
Value flag(bool value) { return Tensor::scalar<bool>(value); }
Value texts(std::initializer_list<std::string> values) { return Tensor::vector<std::string>(values); }

std::string text_of(const Value& value) {
  if (value.kind == Value::Kind::none) return "none";
  std::string out;
  if (value.kind == Value::Kind::sequence) {
    for (const Value& item : value.items) out += (out.empty() ? "" : "; ") + text_of(item);
    return "<" + out + ">";
  }
  const Tensor& t = value.tensor;
  for (std::size_t i = 0; i < t.elements(); ++i) {
    out += i > 0 ? " " : "";
    if (t.dtype() == DType::i64) out += format("{}", t.data<std::int64_t>()[i]);
    if (t.dtype() == DType::f32) out += format("{}", t.data<float>()[i]);
    if (t.dtype() == DType::boolean) out += t.data<bool>()[i] ? "true" : "false";
    if (t.dtype() == DType::string) out += "'" + t.data<std::string>()[i] + "'";
  }
  return to_string(t.shape()) + out;
}

// A graph of one node, run on values; the outputs as text, or the error's message.
std::string run_node(Node node, const std::vector<Value>& inputs, const std::vector<ValueKind>& outputs) {
  Graph graph;
  graph.opsets[""] = 18;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    bool none = inputs[i].kind == Value::Kind::none;
    bool sequence = inputs[i].kind == Value::Kind::sequence;
    DType dtype = none ? DType::f32
                       : (sequence ? (inputs[i].items.empty() ? DType::f32 : inputs[i].items[0].tensor.dtype()) : inputs[i].tensor.dtype());
    graph.inputs.push_back(info(node.inputs[i], dtype, none ? ValueKind::optional : (sequence ? ValueKind::sequence : ValueKind::tensor)));
  }
  for (std::size_t i = 0; i < node.outputs.size(); ++i) graph.outputs.push_back(info(node.outputs[i], DType::undefined, outputs[i]));
  graph.nodes.push_back(std::move(node));
  if (auto status = validate(graph); !status) return status.error().message;
  auto values = interpret(graph, inputs);
  if (!values) return values.error().message;
  std::string text;
  for (const Value& v : *values) text += (text.empty() ? "" : " | ") + text_of(v);
  return text;
}

struct Case {
  Node node;
  std::vector<Value> inputs;
  std::string wanted;  // outputs, or a part of the error's message
};

constexpr auto kPlain = ValueKind::tensor;

std::vector<Case> choosing_cases() {
  Tensor grid = Tensor::of<float>({2, 3}, {1, 0, 2, 0, 0, 3});
  Tensor boxes = Tensor::of<float>({1, 3, 4}, {0, 0, 1, 1, 0, 0.1F, 1, 1.1F, 0, 5, 1, 6});
  Tensor scores = Tensor::of<float>({1, 1, 3}, {0.9F, 0.8F, 0.7F});
  return {
      {node_of("NonZero", {"x"}, {"y"}), {grid}, "[2, 3]0 0 1 0 2 2"},
      {node_of("Compress", {"x", "c"}, {"y"}, {{"axis", std::int64_t{1}}}),
       {grid, Value(Tensor::vector<bool>({false, false, true}))},
       "[2, 1]2 3"},
      {node_of("Compress", {"x", "c"}, {"y"}), {grid, Value(Tensor::vector<bool>({true, false, true}))}, "[2]1 2"},
      {node_of("Compress", {"x", "c"}, {"y"}), {grid, floats({1})}, "vector of bool"},
      {node_of("Unique", {"x"}, {"y", "first", "inverse", "counts"}), {ints({3, 1, 3, 2})}, "[3]1 2 3 | [3]1 3 0 | [4]2 0 2 1 | [3]1 1 2"},
      {node_of("Unique", {"x"}, {"y"}, {{"sorted", std::int64_t{0}}}), {texts({"b", "a", "b"})}, "[2]'b' 'a'"},
      {node_of("NonMaxSuppression", {"b", "s", "n", "i"}, {"y"}),
       {boxes, scores, number(3), Value(Tensor::scalar<float>(0.5F))},
       "[2, 3]0 0 0 0 0 2"},
      {node_of("StringSplit", {"x"}, {"y", "n"}), {texts({" a  b", "c"})}, "[2, 2]'a' 'b' 'c' '' | [2]2 1"},
      {node_of("StringSplit", {"x"}, {"y", "n"}, {{"delimiter", std::string(",")}, {"maxsplit", std::int64_t{1}}}),
       {texts({"a,b,c"})},
       "[1, 2]'a' 'b,c' | [1]2"},
      {node_of("StringNormalizer", {"x"}, {"y"}, {{"case_change_action", std::string("UPPER")}, {"stopwords", Strings{"Mon"}}}),
       {texts({"mon", "t\xC3\xA9l"})},
       "[1]'T\xC3\x89L'"},
  };
}

std::vector<Case> sequence_cases() {
  Value pair = Value::sequence({floats({1}), floats({2, 3})});
  Subgraph twice = body_of({info("item", DType::f32)}, {"r"}, {node_of("Add", {"item", "item"}, {"r"})});
  return {
      {node_of("SequenceConstruct", {"a", "b"}, {"y"}), {floats({1}), floats({2})}, "<[1]1; [1]2>"},
      {node_of("SequenceEmpty", {}, {"y"}), {}, "<>"},
      {node_of("SequenceLength", {"s"}, {"y"}), {pair}, "[]2"},
      {node_of("SequenceAt", {"s", "i"}, {"y"}), {pair, number(-1)}, "[2]2 3"},
      {node_of("SequenceAt", {"s", "i"}, {"y"}), {pair, number(2)}, "outside a sequence of 2"},
      {node_of("SequenceInsert", {"s", "x", "i"}, {"y"}), {pair, floats({9}), number(-1)}, "<[1]1; [1]9; [2]2 3>"},
      {node_of("SequenceErase", {"s"}, {"y"}), {pair}, "<[1]1>"},
      {node_of("SplitToSequence", {"x", "n"}, {"y"}), {floats({1, 2, 3}), number(2)}, "<[2]1 2; [1]3>"},
      {node_of("SplitToSequence", {"x"}, {"y"}, {{"keepdims", std::int64_t{0}}}), {floats({1, 2})}, "<[]1; []2>"},
      {node_of("ConcatFromSequence", {"s"}, {"y"}, {{"axis", std::int64_t{0}}}), {pair}, "[3]1 2 3"},
      {node_of("SequenceMap", {"s"}, {"y"}, {{"body", twice}}), {pair}, "<[1]2; [2]4 6>"},
      {node_of("Optional", {"x"}, {"y"}), {floats({1})}, "[1]1"},
      {node_of("OptionalHasElement", {"x"}, {"y"}), {Value()}, "[]false"},
      {node_of("OptionalGetElement", {"x"}, {"y"}), {Value()}, "holds no value"},
      {node_of("OptionalGetElement", {"x"}, {"y"}), {floats({4})}, "[1]4"},
  };
}

// Doubles a value until it is 100 or more; gives the last value, and all on the way.
Subgraph doubling() {
  auto graph = std::make_shared<Graph>();
  graph->inputs = {info("k", DType::i64), info("go", DType::boolean), info("v", DType::f32)};
  graph->outputs = {info("more", DType::boolean), info("next", DType::f32), info("seen", DType::f32)};
  graph->initializers["limit"] = Tensor::vector<float>({100});
  graph->initializers["none"] = Tensor::vector<std::int64_t>({0});
  graph->nodes = {node_of("Add", {"v", "v"}, {"next"}), node_of("Identity", {"next"}, {"seen"}),
                  node_of("Less", {"next", "limit"}, {"less"}), node_of("Squeeze", {"less", "none"}, {"more"})};
  return graph;
}

std::vector<Case> control_cases() {
  Subgraph one = body_of({}, {"r"}, {node_of("Constant", {}, {"r"}, {{"value_ints", Ints{1}}})});
  Subgraph two = body_of({}, {"r"}, {node_of("Constant", {}, {"r"}, {{"value_ints", Ints{2, 2}}})});
  Subgraph sums = body_of({info("s", DType::f32), info("x", DType::f32)}, {"t", "u"},
                          {node_of("Add", {"s", "x"}, {"t"}), node_of("Identity", {"t"}, {"u"})});
  Attributes scan = {{"body", sums}, {"num_scan_inputs", std::int64_t{1}}};
  Attributes backwards = scan;
  backwards.emplace("scan_input_directions", Ints{1});
  backwards.emplace("scan_output_directions", Ints{1});
  Tensor rows = Tensor::of<float>({3, 1}, {1, 2, 3});
  return {
      {node_of("If", {"c"}, {"y"}, {{"then_branch", one}, {"else_branch", two}}), {flag(true)}, "[1]1"},
      {node_of("If", {"c"}, {"y"}, {{"then_branch", one}, {"else_branch", two}}), {flag(false)}, "[2]2 2"},
      {node_of("If", {"c"}, {"y"}, {{"then_branch", one}, {"else_branch", two}}), {number(1)}, "one bool"},
      {node_of("Loop", {"m", "go", "v"}, {"last", "all"}, {{"body", doubling()}}),
       {number(4), flag(true), floats({1})},
       "[1]16 | [4, 1]2 4 8 16"},
      {node_of("Loop", {"m", "go", "v"}, {"last", "all"}, {{"body", doubling()}}),
       {number(99), flag(true), floats({30})},
       "[1]120 | [2, 1]60 120"},
      {node_of("Loop", {"m", "go", "v"}, {"last", "all"}, {{"body", doubling()}}), {number(99), flag(false), floats({30})}, "[1]30 | [0]"},
      {node_of("Scan", {"s", "x"}, {"t", "u"}, scan), {floats({10}), rows}, "[1]16 | [3, 1]11 13 16"},
      {node_of("Scan", {"s", "x"}, {"t", "u"}, backwards), {floats({10}), rows}, "[1]16 | [3, 1]16 15 13"},
  };
}

TEST(Interpret, EveryOpThatOnlyItRunsIsMet) {
  std::set<std::string> seen;
  std::vector<Case> all = choosing_cases();
  for (auto&& more : {sequence_cases(), control_cases()}) all.insert(all.end(), more.begin(), more.end());
  for (const Case& c : all) {
    seen.insert(c.node.op);
    std::string got = run_node(c.node, c.inputs, std::vector<ValueKind>(c.node.outputs.size(), kPlain));
    // An error's message is tested for the part that matters, outputs as a whole.
    bool fits = got == c.wanted || (got.find(c.node.op) != std::string::npos && got.find(c.wanted) != std::string::npos);
    EXPECT_TRUE(fits) << c.node.op << ": " << got << "\ninstead of " << c.wanted;
  }
  for (const OpDef* op : all_ops()) {
    EXPECT_EQ(op->eager == nullptr, op->infer != nullptr && op->reference != nullptr) << op->type;
    EXPECT_TRUE(op->eager == nullptr || seen.contains(std::string(op->type))) << op->type << " has no case here";
  }
}

// Runs for ever, each time round making its value `factor` times as long.
Graph endless(std::int64_t factor) {
  auto body = std::make_shared<Graph>();
  body->inputs = {info("k", DType::i64), info("go", DType::boolean), info("v", DType::f32)};
  body->outputs = {info("go", DType::boolean), info("w", DType::f32)};
  body->initializers["factor"] = Tensor::vector<std::int64_t>({factor});
  body->nodes = {node_of("Tile", {"v", "factor"}, {"w"})};
  Graph graph;
  graph.inputs = {info("go", DType::boolean), info("v", DType::f32)};
  graph.outputs = {info("y", DType::f32)};
  graph.nodes = {node_of("Loop", {"", "go", "v"}, {"y"}, {{"body", Subgraph(body)}})};
  return graph;
}

TEST(Interpret, LoopsAreBounded) {
  std::vector<Value> inputs = {flag(true), floats({1})};
  auto steps = interpret(endless(1), inputs, {.nodes_max = 10'000});
  ASSERT_FALSE(steps.has_value());
  EXPECT_EQ(steps.error().code, ErrorCode::no_space);
  EXPECT_NE(steps.error().message.find("10000 nodes"), std::string::npos) << steps.error().message;
  auto bytes = interpret(endless(2), inputs, {.bytes_max = 1 << 20});
  ASSERT_FALSE(bytes.has_value());
  EXPECT_EQ(bytes.error().code, ErrorCode::no_space);
  EXPECT_NE(bytes.error().message.find("1048576 bytes"), std::string::npos) << bytes.error().message;
}

TEST(Interpret, WhatALoopLeavesBehindIsNotCountedForEver) {
  // Every round makes 4 KB anew: a thousand of them fit into 64 KB because none of them stays.
  Graph graph = endless(1);
  graph.inputs.insert(graph.inputs.begin(), info("m", DType::i64));
  graph.nodes[0].inputs[0] = "m";
  auto values = interpret(graph, std::vector<Value>{number(1000), flag(true), Value(Tensor(DType::f32, {1024}))}, {.bytes_max = 64 << 10});
  EXPECT_TRUE(values.has_value()) << values.error().message;
}

TEST(Interpret, InputsAreChecked) {
  Graph graph = endless(1);
  auto wrong = interpret(graph, std::vector<Value>{floats({1}), floats({1})});
  ASSERT_FALSE(wrong.has_value());
  EXPECT_NE(wrong.error().message.find("'go'"), std::string::npos);
  EXPECT_FALSE(interpret(graph, std::vector<Value>{flag(true)}).has_value());
  EXPECT_FALSE(interpret(graph, std::vector<Value>{flag(true), Value::sequence({})}).has_value());
}

Graph shaped_by_data() {
  Graph graph;
  graph.inputs = {info("x", DType::f32)};
  graph.inputs[0].shape = {-1};
  graph.inputs[0].has_shape = true;
  graph.outputs = {info("y", DType::i64)};
  graph.nodes = {node_of("NonZero", {"x"}, {"y"})};
  return graph;
}

TEST(Session, PlansWhereItCanAndSaysWhyWhereItCannot) {
  Graph plain = shaped_by_data();
  plain.nodes = {node_of("Neg", {"x"}, {"y"})};
  plain.outputs = {info("y", DType::f32)};
  auto session = Session::make(plain);
  ASSERT_TRUE(session.has_value()) << session.error().message;
  for (int n : {3, 5, 3}) {
    auto values = session->run(std::vector<Value>{Value(Tensor(DType::f32, {n}))});
    ASSERT_TRUE(values.has_value()) << values.error().message;
    EXPECT_EQ((*values)[0].tensor.shape(), Shape{n});
  }
  EXPECT_EQ(session->interpreted(), "");
  session = Session::make(shaped_by_data());
  ASSERT_TRUE(session.has_value()) << session.error().message;
  auto values = session->run(std::vector<Value>{floats({0, 7})});
  ASSERT_TRUE(values.has_value()) << values.error().message;
  EXPECT_EQ(text_of((*values)[0]), "[1, 1]1");
  EXPECT_NE(session->interpreted().find("NonZero"), std::string::npos) << session->interpreted();
  EXPECT_FALSE(session->run(std::vector<Value>{}).has_value());
}

}  // namespace
}  // namespace falaj::kernels
