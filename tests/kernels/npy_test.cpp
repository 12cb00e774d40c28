// .npy files: what is written is read again, the forms NumPy writes are read, and damaged or hostile files are refused.
#include "kernels/npy.hpp"

#include <gtest/gtest.h>

#include "kernels/convert.hpp"
#include "tests/kernels/op_cases.hpp"
#include "tests/kernels/seeded.hpp"

namespace falaj::kernels {
namespace {

Bytes file_of(std::string_view header, std::string_view data, char version = 1) {
  std::string text = "\x93NUMPY";
  text += version;
  text += '\0';
  text += static_cast<char>(header.size() & 0xFF);
  text += static_cast<char>(header.size() >> 8);
  if (version > 1) text += std::string(2, '\0');
  text += header;
  text += data;
  return {text.begin(), text.end()};
}
std::string error_of(const Bytes& file, DType wanted = DType::undefined) {
  auto tensor = read_npy(file, wanted);
  return tensor ? std::string("none") : tensor.error().message;
}

TEST(Npy, EveryTypeComesBackAsItWas) {
  Random random(testing::test_seed());
  for (int code = 1; code < 32; ++code) {
    DType dtype = dtype_of_code(code);
    if (dtype == DType::undefined || dtype == DType::string) continue;
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3, 2}, Shape{0, 4}}) {
      Tensor t = converted(testing::random_tensor(random, shape, 0, 7), dtype);
      auto written = write_npy(t);
      ASSERT_TRUE(written.has_value()) << to_string(dtype) << ": " << written.error().message;
      EXPECT_EQ((written->size() - t.bytes()) % 64, 0U);
      auto again = read_npy(*written, dtype);
      ASSERT_TRUE(again.has_value()) << to_string(dtype) << ": " << again.error().message;
      EXPECT_TRUE(equal_bits(*again, t)) << to_string(dtype) << to_string(shape);
    }
  }
  Tensor texts = Tensor::of<std::string>({2, 2}, {"", "na\xC3\xAFve", "\xF0\x9F\x90\xAA", "plain"});
  auto again = read_npy(*write_npy(texts), DType::string);
  ASSERT_TRUE(again.has_value()) << again.error().message;
  EXPECT_TRUE(equal_bits(*again, texts));
}

TEST(Npy, FormsThatNumpyWritesAreRead) {
  std::string six("\1\0\2\0\3\0\4\0\5\0\6\0", 12);
  auto rows = read_npy(file_of("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }", six));
  ASSERT_TRUE(rows.has_value()) << rows.error().message;
  EXPECT_EQ(rows->data<std::int16_t>()[1], 2);
  auto columns = read_npy(file_of("{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3), }", six, 2));
  ASSERT_TRUE(columns.has_value()) << columns.error().message;
  EXPECT_EQ(columns->data<std::int16_t>()[1], 3);  // stored 1 4 | 2 5 | 3 6 column by column: row 0 is 1 3 5
  EXPECT_EQ(columns->data<std::int16_t>()[3], 2);
  auto bytes = read_npy(file_of("{'descr': '|S2', 'fortran_order': False, 'shape': (2,), }", std::string("ab"
                                                                                                         "c\0",
                                                                                                         4)));
  ASSERT_TRUE(bytes.has_value()) << bytes.error().message;
  EXPECT_EQ(bytes->data<std::string>()[1], "c");
  auto scalar = read_npy(file_of("{'descr': '|b1', 'fortran_order': False, 'shape': (), }", "\1"));
  ASSERT_TRUE(scalar.has_value()) << scalar.error().message;
  EXPECT_TRUE(scalar->data<bool>()[0]);
}

TEST(Npy, OtherFilesAreRefusedWithAReason) {
  auto header = [](std::string_view descr, std::string_view shape) {
    return "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': " + std::string(shape) + ", }";
  };
  EXPECT_NE(error_of({}).find("no .npy file"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("<f4", "(9223372036854775807, 9223372036854775807)"), "")), "none");
  EXPECT_NE(error_of(file_of(header("<f4", "(1000000000,)"), "1234")).find("4 are there"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("<f4", "(-1,)"), "1234")).find("size"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("<f4", "(1,1,1,1,1,1,1,1,1)"), "1234")).find("dimensions"), std::string::npos);
  EXPECT_NE(error_of(file_of(header(">f4", "(1,)"), "1234")).find("big-endian"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("<c8", "(1,)"), "12345678")).find("c8"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("|O", "(1,)"), "12345678")), "none");
  EXPECT_NE(error_of(file_of(header("<U99999999", "(1,)"), "1234")), "none");
  EXPECT_NE(error_of(file_of(header("<U0", "(1000000000,)"), "")), "none");
  EXPECT_NE(error_of(file_of(header("<U2", "(9999999999, 0)"), "")).find("needs more than"), std::string::npos);
  EXPECT_NE(error_of(file_of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "1234")).find("records"),
            std::string::npos);
  EXPECT_NE(error_of(file_of("{'shape': (1,)}", "1234")).find("not complete"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("<f4", "(1,)"), "1234"), DType::f64).find("float64 is needed"), std::string::npos);
  EXPECT_NE(error_of(file_of(header("|i1", "(1,)"), "\x10"), DType::i4).find("does not fit"), std::string::npos);
}

TEST(Npy, CutOrDamagedAnywhereNothingBreaks) {
  Random random(testing::test_seed());
  for (const Tensor& t : {Tensor::of<float>({2, 2}, {1, 2, 3, 4}), Tensor::vector<std::string>({"a", "bcd"})}) {
    Bytes file = *write_npy(t);
    for (std::size_t n = 0; n < file.size(); ++n) EXPECT_FALSE(read_npy(ByteView(file).first(n)).has_value()) << n;
    for (int i = 0; i < 3000; ++i) {
      Bytes damaged = file;
      for (std::uint64_t k = 0; k <= random.below(3); ++k)
        damaged[random.below(damaged.size())] = static_cast<std::uint8_t>(random.below(256));
      auto read = read_npy(damaged);
      EXPECT_TRUE(!read || write_npy(*read).has_value());
    }
  }
}

}  // namespace
}  // namespace falaj::kernels
