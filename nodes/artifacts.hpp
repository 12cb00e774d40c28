// Artifacts between files of this machine and the cluster's store, over a principal's connection.
#pragma once
#include <string>
#include <string_view>

#include "nodes/client.hpp"
#include "runtime/base/bytes.hpp"

namespace falaj::nodes {

Result<Bytes> fetch_artifact(Client& client, const std::string& digest);  // each chunk checked against its digest
Result<std::string> put_artifact(Client& client, ByteView content, std::string_view media_type, const std::string& tenant);
Result<Bytes> read_binary_file(const std::string& path);       // at most 2 GiB
Status write_file(const std::string& path, ByteView content);  // whole, or not at all
Status check_onnx(ByteView content, std::string_view name);    // can it be read and served?

}  // namespace falaj::nodes
