// For clang only, and included by the build before everything else (see falaj_schemas in CMakeLists.txt): Cap'n Proto 0.9.2's
// kj/string.h leaves out its comparison operators where the compiler has <=>, but declares no <=> that clang accepts in C++20 and
// later. <compare> and <string> come first, so that the standard library still sees what the compiler can do.
#pragma once
#include <compare>
#include <string>
#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wbuiltin-macro-redefined"
#pragma push_macro("__cpp_impl_three_way_comparison")
#undef __cpp_impl_three_way_comparison
#include <kj/string.h>
#pragma pop_macro("__cpp_impl_three_way_comparison")
#pragma clang diagnostic pop
#endif
