// Two kinds of wrong: check() for the world (files, flags, memory: always on, throws Error),
// assert() for our own promises.
#pragma once
#include <stdexcept>
#include <string>

namespace stief {

// What the user reads after "error: ": where, what was expected, what was found, what to do.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Wrong command line (exit status 2); the message ends with the line that would be right.
struct UsageError : Error {
    using Error::Error;
};

// printf into a string.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

[[noreturn]] void fail(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// Throws Error(format(pattern, ...)) unless ok. The arguments are evaluated either way: where one
// of them costs something, write if (!ok) fail(...).

void check(bool ok, const char* pattern, ...) __attribute__((format(printf, 2, 3)));

}  // namespace stief
