// A compiled model as a file: its graph after all passes, its constants, and the packed forms of its weights that were made so far. The
// next start of the same model maps it, and neither reads the ONNX file nor computes anything; what no run touches is never read.
//
// Layout, little endian: "FALAJCMP", version (u32), length of the head (u64), head, zeros up to a multiple of 4,096, data. The head
// (codec.hpp: its CRC-32C at the end) opens with `key`, then has graph, notes and packed weights; a tensor in it is type, shape
// and where its bytes are, from the data's beginning, a multiple of 64.
//
// `key` says for what the file is good: which model, which options, and all that packed forms depend on (backends_version(), and which
// build of this program). Another key is a `conflict`, a damaged head is `corrupt`: compile the model then, and write the file anew.
// The data have no checksum, and packed forms are believed: only files that this program's own user wrote are to be given here.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/onnx/onnx.hpp"
#include "kernels/plan.hpp"

namespace falaj::kernels {

using ByteSink = std::function<Status(ByteView)>;

// Gives the file to `sink`, piece by piece. Of forms that were packed from no initialiser of the graph nothing is kept.
Status write_compiled(const Compiled& compiled, std::string_view key, const ByteSink& sink);
// The Compiled keeps `file`, which lies on a multiple of 64. `options` are those it was compiled with (they belong into the key).
Result<std::shared_ptr<const Compiled>> read_compiled(ModelBytes file, std::string_view key, CompileOptions options);

}  // namespace falaj::kernels
