// The codec of the Open Inference Protocol, both ways: each datatype as JSON and as binary data, and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "actors/serving/model.hpp"
#include "actors/serving/oip.hpp"
#include "runtime/base/format.hpp"

namespace falaj::serving {
namespace {

using messages::DataType;
using messages::Infer;
using messages::InferReply;
using ::testing::HasSubstr;

std::string body_text(const net::HttpResponse& response) { return std::string(as_text(response.body)); }

Result<DecodedInfer> decode(std::string_view json, std::string_view binary = {}) {
  net::JsonReader reader;
  const auto body = std::string(json) + std::string(binary);
  return decode_infer(reader, as_bytes(body), binary.empty() ? std::string() : std::to_string(json.size()), "m", 3);
}

std::string one_input(std::string_view datatype, std::string_view shape, std::string_view data) {
  return format(R"({{"inputs":[{{"name":"x","shape":{},"datatype":"{}","data":{}}}]}})", shape, datatype, data);
}

std::string refusal(std::string_view json, std::string_view binary = {}) {
  const auto decoded = decode(json, binary);
  if (decoded) return "accepted";
  EXPECT_EQ(http_status(decoded.error().code), 400U) << decoded.error().message;
  return decoded.error().message;
}

// The reply a model would give that returns its inputs.
net::HttpResponse echo(const DecodedInfer& decoded, const AnswerFormat& answer) {
  const auto request = decoded.message.open<Infer>().value();
  const auto reply = Message::build<InferReply>([&](InferReply::Builder b) {
    b.setModel("m");
    b.setVersion(3);
    b.setId(request->getId());
    b.setOutputs(request->getInputs());
  });
  return encode_infer(*reply.view<InferReply>(), answer);
}

struct TypeCase {
  std::string_view type;
  std::size_t size;
  std::string_view json;  // two elements
};

class OipTypes : public testing::TestWithParam<TypeCase> {};

TEST_P(OipTypes, JsonThereAndBack) {
  const auto& c = GetParam();
  const auto decoded = decode(one_input(c.type, "[2,1]", c.json));
  ASSERT_TRUE(decoded) << decoded.error().message;
  const auto request = decoded->message.open<Infer>().value();
  EXPECT_EQ(text(request->getModel()), "m");
  EXPECT_EQ(request->getVersion(), 3U);
  const auto input = request->getInputs()[0];
  EXPECT_EQ(type_name(input.getType()), c.type);
  EXPECT_EQ(c.size == 0 ? input.getStrings().size() : input.getContent().size() / c.size, 2U);
  EXPECT_EQ(body_text(echo(*decoded, {})),
            format(R"({{"model_name":"m","model_version":"3","outputs":[{{"name":"x","datatype":"{}","shape":[2,1],)"
                   R"("data":{}}}]}})",
                   c.type, c.json));
}

TEST_P(OipTypes, BinaryThereAndBack) {
  const auto& c = GetParam();
  const auto as_json = decode(one_input(c.type, "[2,1]", c.json)).value();
  const auto response = echo(as_json, {.binary_by_default = true, .outputs = {}});
  const auto header = std::find_if(response.headers.begin(), response.headers.end(),
                                   [](const auto& h) { return h.first == "Inference-Header-Content-Length"; });
  ASSERT_NE(header, response.headers.end());
  const auto json_size = static_cast<std::size_t>(std::stoul(header->second));
  const auto all = body_text(response);
  const auto binary = all.substr(json_size);
  EXPECT_THAT(all.substr(0, json_size), HasSubstr(format("\"binary_data_size\":{}", binary.size())));
  if (c.size != 0) {
    EXPECT_EQ(binary.size(), 2 * c.size);
  }
  const auto again = decode(format(R"({{"inputs":[{{"name":"x","shape":[2,1],"datatype":"{}","parameters":{{"binary_data_size":{}}}}}]}})",
                                   c.type, binary.size()),
                            binary);
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(body_text(echo(*again, {})), body_text(echo(as_json, {})));
}

INSTANTIATE_TEST_SUITE_P(All, OipTypes,
                         testing::Values(TypeCase{"BOOL", 1, "[true,false]"}, TypeCase{"UINT8", 1, "[0,255]"},
                                         TypeCase{"UINT16", 2, "[0,65535]"}, TypeCase{"UINT32", 4, "[0,4294967295]"},
                                         TypeCase{"UINT64", 8, "[0,18446744073709551615]"}, TypeCase{"INT8", 1, "[-128,127]"},
                                         TypeCase{"INT16", 2, "[-32768,32767]"}, TypeCase{"INT32", 4, "[-2147483648,2147483647]"},
                                         TypeCase{"INT64", 8, "[-9223372036854775808,9223372036854775807]"},
                                         TypeCase{"FP32", 4, "[1.5,-0.1]"}, TypeCase{"FP64", 8, "[0.1,-2.5]"},
                                         TypeCase{"BYTES", 0, R"(["a \"b\"",""])"}),
                         [](const auto& one) { return std::string(one.param.type); });

TEST(OipDecode, NestedAndFlatDataAreTheSame) {
  const auto nested = decode(one_input("INT32", "[2,2]", "[[1,2],[3,4]]")).value();
  const auto flat = decode(one_input("INT32", "[2,2]", "[1,2,3,4]")).value();
  EXPECT_EQ(body_text(echo(nested, {})), body_text(echo(flat, {})));
}

TEST(OipDecode, NullIsMissingWhereTheTypeHasOne) {
  const auto numbers = decode(one_input("FP32", "[2]", "[null,1]")).value();
  float first = 0;
  std::memcpy(&first, numbers.message.open<Infer>().value()->getInputs()[0].getContent().begin(), 4);
  EXPECT_TRUE(std::isnan(first));
  const auto strings = decode(one_input("BYTES", "[2]", R"([null,"a"])")).value();
  EXPECT_EQ(strings.message.open<Infer>().value()->getInputs()[0].getStrings()[0].size(), 0U);
  EXPECT_THAT(refusal(one_input("INT64", "[1]", "[null]")), HasSubstr("input 'x'"));
}

TEST(OipDecode, HalfFloatsTravelAsBinaryOnly) {
  EXPECT_THAT(refusal(one_input("FP16", "[1]", "[1]")), HasSubstr("binary"));
  const auto decoded = decode(R"({"inputs":[{"name":"x","shape":[1],"datatype":"BF16","parameters":{"binary_data_size":2}}]})", "ab");
  ASSERT_TRUE(decoded);
  EXPECT_EQ(echo(*decoded, {}).status, 400U);
  EXPECT_EQ(echo(*decoded, {.binary_by_default = true, .outputs = {}}).status, 200U);
}

TEST(OipDecode, RefusesNamingInputAndRemedy) {
  EXPECT_THAT(refusal("{"), HasSubstr("JSON, byte"));
  EXPECT_THAT(refusal("[]"), HasSubstr("object"));
  EXPECT_THAT(refusal("{}"), HasSubstr("'inputs' is missing"));
  EXPECT_THAT(refusal(R"({"inputs":3})"), HasSubstr("array"));
  EXPECT_THAT(refusal(R"({"inputs":[{}]})"), HasSubstr("'name' is missing"));
  EXPECT_THAT(refusal(R"({"inputs":[{"name":"x"}]})"), HasSubstr("'datatype' is missing"));
  EXPECT_THAT(refusal(one_input("FP31", "[1]", "[1]")), HasSubstr("FP31"));
  EXPECT_THAT(refusal(one_input("FP32", "[-1]", "[1]")), HasSubstr("negative"));
  EXPECT_THAT(refusal(one_input("FP32", "[3]", "[1,2]")), HasSubstr("2 elements, the shape asks for 3"));
  EXPECT_THAT(refusal(one_input("FP32", "[1]", "[1,2]")), HasSubstr("more than"));
  EXPECT_THAT(refusal(one_input("FP32", "[1]", "[\"a\"]")), HasSubstr("input 'x'"));
  EXPECT_THAT(refusal(one_input("FP32", "[1]", "[1e39]")), HasSubstr("FP32"));
  EXPECT_THAT(refusal(one_input("FP32", "[1]", "[NaN]")), HasSubstr("JSON"));
  EXPECT_THAT(refusal(one_input("UINT8", "[1]", "[256]")), HasSubstr("256"));
  EXPECT_THAT(refusal(one_input("INT8", "[1]", "[1.5]")), HasSubstr("input 'x'"));
  EXPECT_THAT(refusal(one_input("BOOL", "[1]", "[2]")), HasSubstr("BOOL"));
  EXPECT_THAT(refusal(one_input("BYTES", "[1]", "[1]")), HasSubstr("input 'x'"));
  EXPECT_THAT(refusal(one_input("FP32", "[4611686018427387904,4611686018427387904]", "[1]")), HasSubstr("more elements"));
  EXPECT_THAT(refusal(one_input("FP32", "[1,1,1,1,1,1,1,1,1]", "[1]")), HasSubstr("dimensions"));
  EXPECT_THAT(refusal(one_input("FP32", "[1]", std::string(1000, '[') + std::string(1000, ']'))), HasSubstr("JSON"));
}

TEST(OipDecode, RefusesBinaryThatDoesNotAddUp) {
  const auto input = [](std::string_view type, std::string_view shape, int size) {
    return format(R"({{"inputs":[{{"name":"x","shape":{},"datatype":"{}","parameters":{{"binary_data_size":{}}}}}]}})", shape, type, size);
  };
  EXPECT_THAT(refusal(input("FP32", "[1]", 5), "12345"), HasSubstr("make 4"));
  EXPECT_THAT(refusal(input("FP32", "[1]", 8), "1234"), HasSubstr("4 bytes left"));
  EXPECT_THAT(refusal(input("FP32", "[1]", 4), "12345678"), HasSubstr("belong to no input"));
  EXPECT_THAT(refusal(input("BYTES", "[1]", 5), std::string_view("\x05\0\0\0a", 5)), HasSubstr("within element 0"));
  EXPECT_THAT(refusal(input("BYTES", "[2]", 5), std::string_view("\x01\0\0\0a", 5)), HasSubstr("asks for 2"));
  EXPECT_THAT(refusal(input("BYTES", "[1]", 6), std::string_view("\x01\0\0\0ab", 6)), HasSubstr("behind its last"));
  net::JsonReader reader;
  EXPECT_FALSE(decode_infer(reader, as_bytes("{}"), "3", "m", 0));
  EXPECT_FALSE(decode_infer(reader, as_bytes("{}"), "-1", "m", 0));
  EXPECT_FALSE(decode_infer(reader, as_bytes("{}"), "2x", "m", 0));
  EXPECT_EQ(decode_infer(reader, as_bytes("{}"), "0", "m", 0).error().code, ErrorCode::unimplemented);
}

TEST(OipDecode, ReadsWhatTheAnswerShallBe) {
  const auto decoded = decode(R"({"id":"7","parameters":{"binary_data_output":true,"timeout":1500},"outputs":[{"name":"p","parameters":)"
                              R"({"binary_data":false}},{"name":"q","parameters":{"classification":2}},{"name":"r"}],"inputs":[]})");
  ASSERT_TRUE(decoded) << decoded.error().message;
  EXPECT_EQ(decoded->timeout, std::chrono::microseconds(1500));
  EXPECT_TRUE(decoded->format.binary_by_default);
  ASSERT_EQ(decoded->format.outputs.size(), 3U);
  EXPECT_EQ(decoded->format.outputs[0].binary, std::optional(false));
  EXPECT_EQ(decoded->format.outputs[1].classes, 2U);
  const auto request = decoded->message.open<Infer>().value();
  EXPECT_EQ(request->getOutputs().size(), 3U);
  EXPECT_EQ(text(request->getId()), "7");
}

TEST(OipEncode, ClassificationGivesTheGreatest) {
  const auto decoded = decode(one_input("FP32", "[2,3]", "[0.1,0.7,0.2, 0.5,0.25,0.25]")).value();
  const auto response = echo(decoded, {.binary_by_default = false, .outputs = {{"x", std::nullopt, 2}}});
  EXPECT_THAT(body_text(response),
              HasSubstr(R"("datatype":"BYTES","shape":[2,2],"data":["0.700000:1","0.200000:2","0.500000:0","0.250000:1"])"));
  const auto all = echo(decoded, {.binary_by_default = false, .outputs = {{"x", std::nullopt, 100}}});
  EXPECT_THAT(body_text(all), HasSubstr(R"("shape":[2,3])"));
  const auto words = decode(one_input("BYTES", "[1]", R"(["a"])")).value();
  EXPECT_EQ(echo(words, {.binary_by_default = false, .outputs = {{"x", std::nullopt, 1}}}).status, 400U);
}

TEST(OipEncode, NotANumberIsNull) {
  const auto decoded = decode(one_input("FP32", "[1]", "[null]")).value();
  EXPECT_THAT(body_text(echo(decoded, {})), HasSubstr("\"data\":[null]"));
}

TEST(OipEncode, ErrorsHaveTheirStatus) {
  EXPECT_EQ(error_response(error(ErrorCode::denied, "x")).status, 403U);
  EXPECT_EQ(error_response(error(ErrorCode::not_found, "x")).status, 404U);
  EXPECT_EQ(error_response(error(ErrorCode::deadline, "x")).status, 504U);
  const auto busy = error_response(error(ErrorCode::overloaded, "a \"b\""));
  EXPECT_EQ(busy.status, 503U);
  EXPECT_EQ(body_text(busy), R"({"error":"a \"b\""})");
  EXPECT_EQ(busy.headers.front().first, "Retry-After");
}

}  // namespace
}  // namespace falaj::serving
