// Names of places in this program, by addr2line: of an address that follows a call, of a function.
#pragma once
#include <cstdint>
#include <string>

namespace stief::simt {

std::string relative(const std::string& file);  // to the sources' root: "cuda/norm.cu"
std::string place_of(uint32_t code);            // "cuda/norm.cu:18"
std::string short_name(const void* function);   // "rmsnorm_kernel<bf16>"

}  // namespace stief::simt
