// Ops that only move elements, by their definitions: runs of all lengths, elements of all widths.
#include <functional>

#include "kernels/convert.hpp"
#include "kernels/ops.hpp"
#include "runtime/base/format.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

using Index = std::vector<std::int64_t>;

class Moves : public testing::Seeded {
 protected:
  Tensor draw(const Shape& shape) {
    Tensor t(DType::f64, shape);
    for (double& v : t.mutable_data<double>()) v = static_cast<double>(random_.below(200));
    constexpr std::array kTypes = {DType::u8, DType::f16, DType::f32, DType::i64};
    return converted(t, kTypes[random_.below(kTypes.size())]);
  }
  Shape shape() {
    Shape s;
    for (std::int64_t d = 1 + up_to(3); d > 0; --d) s.push_back(random_.chance(0.3) ? up_to(3) : up_to(40));
    return s;
  }

  // Each element of op(inputs) is the element of input 0 that `from` names, or `fill` where it names none.
  void check(std::string_view op, std::vector<Tensor> inputs, Attributes attributes, const std::function<bool(Index&)>& from,
             double fill = 0) {
    Node node{std::string(op), "", "", {}, {"y"}, std::move(attributes)};
    for (std::size_t i = 0; i < inputs.size(); ++i) node.inputs.push_back(inputs[i].empty() ? "" : format("x{}", i));
    const auto got = run_reference(node, inputs);
    ASSERT_TRUE(got) << op << ": " << got.error().message;
    const Tensor x = converted(inputs[0], DType::f64);
    const Tensor y = converted((*got)[0], DType::f64);
    Index at(y.shape().rank(), 0);
    for (const double value : y.data<double>()) {
      Index source = at;
      double wanted = fill;
      if (from(source)) {
        std::int64_t offset = 0;
        for (std::size_t d = 0; d < x.shape().rank(); ++d) offset = offset * x.shape()[d] + source[d];
        wanted = x.data<double>()[static_cast<std::size_t>(offset)];
      }
      ASSERT_EQ(value, wanted) << op << " of " << to_string(inputs[0].dtype()) << to_string(x.shape()) << " to " << to_string(y.shape());
      for (std::size_t d = at.size(); d-- > 0;) {
        if (++at[d] < y.shape()[d]) break;
        at[d] = 0;
      }
    }
  }
  static Tensor ints(const Index& values) {
    return Tensor::of<std::int64_t>({static_cast<std::int64_t>(values.size())}, std::span<const std::int64_t>(values));
  }
};

TEST_F(Moves, SlicesTakeWhatTheySay) {
  for (int round = 0; round < 60; ++round) {
    const Shape in = shape();
    Index starts;
    Index ends;
    Index axes;
    Index steps;
    for (std::size_t d = 0; d < in.rank(); ++d) {
      const std::int64_t first = up_to(in[d]) - 1;
      const std::int64_t last = first + up_to(in[d] - first);
      const bool back = random_.chance(0.2);
      const bool all = random_.chance(0.4);
      starts.push_back(all ? 0 : (back ? last - 1 : first));
      ends.push_back(all ? in[d] : (back ? first - 1 - in[d] : last));
      if (!all && back && first == 0) ends.back() = -in[d] - 1;
      axes.push_back(static_cast<std::int64_t>(d));
      steps.push_back(all ? 1 : (back ? -up_to(2) : up_to(2)));
    }
    check("Slice", {draw(in), ints(starts), ints(ends), ints(axes), ints(steps)}, {}, [&](Index& at) {
      for (std::size_t d = 0; d < at.size(); ++d) at[d] = starts[d] + at[d] * steps[d];
      return true;
    });
  }
}

TEST_F(Moves, PadsAreFilledOrCopied) {
  for (int round = 0; round < 60; ++round) {
    const Shape in = shape();
    const bool edge = random_.chance(0.3);
    Index pads;
    for (std::size_t i = 0; i < 2 * in.rank(); ++i) pads.push_back(random_.chance(0.5) ? 0 : up_to(9));
    const Tensor x = draw(in);
    const Tensor fill = converted(Tensor::scalar<double>(7), x.dtype());
    const bool filled = !edge && random_.chance(0.5);
    const auto from = [&](Index& at) {
      for (std::size_t d = 0; d < at.size(); ++d) {
        at[d] -= pads[d];
        if (!edge && (at[d] < 0 || at[d] >= in[d])) return false;
        at[d] = std::clamp<std::int64_t>(at[d], 0, in[d] - 1);
      }
      return true;
    };
    check("Pad", {x, ints(pads), filled ? fill : Tensor()}, {{"mode", std::string(edge ? "edge" : "constant")}}, from, filled ? 7 : 0);
  }
}

TEST_F(Moves, ExpandedAndTiledElementsAreRepeated) {
  for (int round = 0; round < 60; ++round) {
    const Shape in = shape();
    Index wanted;
    Index repeats;
    for (const std::int64_t d : in) {
      wanted.push_back(d == 1 ? up_to(20) : d);
      repeats.push_back(up_to(3));
    }
    check("Expand", {draw(in), ints(wanted)}, {}, [&](Index& at) {
      for (std::size_t d = 0; d < at.size(); ++d) at[d] = in[d] == 1 ? 0 : at[d];
      return true;
    });
    check("Tile", {draw(in), ints(repeats)}, {}, [&](Index& at) {
      for (std::size_t d = 0; d < at.size(); ++d) at[d] %= in[d];
      return true;
    });
  }
}

TEST_F(Moves, GatheredRowsAreThoseNamed) {
  for (int round = 0; round < 40; ++round) {
    const Shape in = shape();
    const std::size_t axis = random_.below(in.rank());
    Index rows;
    for (std::int64_t i = up_to(20); i > 0; --i) rows.push_back(up_to(in[axis]) - 1);
    check("Gather", {draw(in), ints(rows)}, {{"axis", static_cast<std::int64_t>(axis)}}, [&](Index& at) {
      at[axis] = rows[static_cast<std::size_t>(at[axis])];
      return true;
    });
  }
}

TEST_F(Moves, PartsAreWhatWasJoined) {
  for (int round = 0; round < 40; ++round) {
    Shape part = shape();
    const std::size_t axis = random_.below(part.rank());
    const std::int64_t n = up_to(4);
    Node join{"Concat", "", "", {}, {"y"}, {{"axis", static_cast<std::int64_t>(axis)}}};
    Node split{"Split", "", "", {"x", "sizes"}, {}, join.attributes};
    std::vector<Tensor> parts;
    Index sizes;
    for (std::int64_t i = 0; i < n; ++i) {
      part[axis] = random_.chance(0.3) ? 1 : up_to(20);
      sizes.push_back(part[axis]);
      Tensor t = draw(part);
      parts.push_back(i == 0 ? t : converted(t, parts[0].dtype()));
      join.inputs.push_back(format("x{}", i));
      split.outputs.push_back(format("y{}", i));
    }
    const auto whole = run_reference(join, parts);
    ASSERT_TRUE(whole) << whole.error().message;
    // Each part is a slice of the whole, by the definition that is tested above.
    std::int64_t first = 0;
    for (const Tensor& t : parts) {
      const std::int64_t last = first + t.shape()[axis];
      const Node cut{"Slice", "", "", {"x", "a", "b", "c"}, {"y"}, {}};
      const auto slice =
          run_reference(cut, std::vector<Tensor>{(*whole)[0], ints({first}), ints({last}), ints({static_cast<std::int64_t>(axis)})});
      ASSERT_TRUE(slice) << slice.error().message;
      EXPECT_TRUE(equal_bits((*slice)[0], t));
      first = last;
    }
    const auto again = run_reference(split, std::vector<Tensor>{(*whole)[0], ints(sizes)});
    ASSERT_TRUE(again) << again.error().message;
    for (std::size_t i = 0; i < parts.size(); ++i) EXPECT_TRUE(equal_bits((*again)[i], parts[i]));
  }
}

}  // namespace
}  // namespace falaj::kernels
