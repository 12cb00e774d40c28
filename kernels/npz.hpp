// NumPy's .npz: a zip file of .npy files, stored (np.savez) or deflated (np.savez_compressed). The zip format is that of PKWARE's
// APPNOTE.TXT 6.3.10, of which this reads what holds arrays: methods 0 and 8, ZIP64, no encryption, no file in several parts.
//
// Input is what anybody may send. What the directory claims is checked against the bytes that are there: a deflated array takes memory
// as its bytes come out, never more than it claims, than deflate can give, and than `bytes_max`. Sums (CRC-32) are checked.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/npy.hpp"

namespace falaj::kernels {

constexpr std::size_t kNpzEntriesMax = 1U << 16;
constexpr std::uint64_t kNpzBytesMax = std::uint64_t{4} << 30;  // of one array, unpacked

// Names of the arrays, without ".npy", in the order of the file's directory.
Result<std::vector<std::string>> npz_names(ByteView file);
// The array of that name; `wanted` as of read_npy. not_found says which there are.
Result<Tensor> read_npz(ByteView file, std::string_view name, DType wanted = DType::undefined, std::uint64_t bytes_max = kNpzBytesMax);

// How many bytes deflate makes of these, at its default level: what a file takes in an archive.
std::uint64_t deflated_size(ByteView bytes);

}  // namespace falaj::kernels
