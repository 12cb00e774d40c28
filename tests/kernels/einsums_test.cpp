// Einsum as other ops: the same values as the reference's, and none left where one was to go.
#include <gtest/gtest.h>

#include "kernels/plan.hpp"
#include "tests/kernels/op_cases.hpp"

namespace falaj::kernels {
namespace {

struct Case {
  const char* equation;
  Shape a, b;
  bool lowered;
};

Tensor run(const Case& c, bool fuse, std::string& why) {
  Graph g;
  g.add_input("a", DType::f32, c.a);
  g.add_input("b", DType::f32, c.b);
  g.add("Einsum", {"a", "b"}, {{"equation", std::string(c.equation)}}, "y");
  g.outputs = {{.name = "y", .dtype = DType::f32, .has_shape = false}};
  auto compiled = compile(std::move(g), {.fuse = fuse});
  EXPECT_TRUE(compiled.has_value()) << compiled.error().message;
  if (!compiled) return {};
  why = (*compiled)->why().value();
  Random random(7);
  std::vector<Tensor> inputs = {Tensor(DType::f32, c.a), Tensor(DType::f32, c.b)};
  for (Tensor& t : inputs) {
    for (float& v : t.mutable_data<float>()) v = static_cast<float>(random.normal());
  }
  Executor executor(*compiled);
  std::vector<Tensor> outputs;
  const auto status = executor.run(inputs, outputs);
  EXPECT_TRUE(status.has_value()) << status.error().message;
  return outputs.empty() ? Tensor() : outputs[0];
}

TEST(Einsums, BecomeProductsWhereTheyCan) {
  const Case cases[] = {
      {"nf,fd->nfd", {3, 5}, {5, 4}, true},                   // columns scale their own rows
      {"fd,nf->nfd", {5, 4}, {3, 5}, true},                   // and the other way round
      {"i,j->ij", {3}, {4}, true},                            // outer product
      {"i,j->ji", {3}, {4}, true},                            //
      {"ij,ij->ij", {3, 4}, {3, 4}, true},                    // element by element
      {"ij,ji->ij", {3, 4}, {4, 3}, true},                    //
      {"ij,jk->ik", {3, 4}, {4, 5}, true},                    // matrices
      {"ij,jk", {3, 4}, {4, 5}, true},                        // the result is not said
      {"ij,kj->ki", {3, 4}, {5, 4}, true},                    // turned
      {"bhqd,bhkd->bhqk", {2, 3, 4, 5}, {2, 3, 6, 5}, true},  // attention
      {"bqhd,bkhd->bhqk", {2, 4, 3, 5}, {2, 6, 3, 5}, true},  //
      {"bhqk,bkhd->bqhd", {2, 3, 4, 6}, {2, 6, 3, 5}, true},  //
      {"ij,jk->i", {3, 4}, {4, 5}, false},                    // k is summed in one operand alone
      {"ijk,jkl->il", {2, 3, 4}, {3, 4, 5}, false},           // two labels are summed
      {"ij,ij->i", {3, 4}, {3, 4}, false},                    // no label of its own
      {"ij,jk->ik", {3, 1}, {4, 5}, false},                   // a size of one, stretched along the sum
      {"...j,jk->...k", {2, 3, 4}, {4, 5}, false},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.equation);
    std::string why;
    const Tensor got = run(c, true, why);
    EXPECT_EQ(why.find("(Einsum)") == std::string::npos, c.lowered) << why;
    const Tensor wanted = run(c, false, why);
    ASSERT_EQ(got.shape(), wanted.shape());
    for (std::size_t i = 0; i < got.elements(); ++i) ASSERT_NEAR(got.data<float>()[i], wanted.data<float>()[i], 1e-5F) << i;
  }
}

}  // namespace
}  // namespace falaj::kernels
