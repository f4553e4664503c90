// Text of gRPC over HTTP/2 (the protocol's PROTOCOL-HTTP2.md): timeouts, messages, binary metadata. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace headroom {

// `grpc-timeout`: one to eight digits and a unit of H, M, S, m, u, n; in nanoseconds. Nothing where it is not that.
std::optional<int64_t> parse_grpc_timeout(std::string_view text);

// `x-request-timeout-ms`: plain decimal milliseconds over 0, at most an hour; in nanoseconds. Nothing where it is not that.
std::optional<int64_t> parse_timeout_ms(std::string_view text);

// `grpc-message`: everything but visible ASCII, and `%` itself, as %XX.
std::string percent_encode(std::string_view text);

// As much of it as `max_bytes` hold, and no part of a UTF-8 character.
std::string_view cut_text(std::string_view text, size_t max_bytes);

std::string base64_encode(std::string_view bytes);

// With padding or without. Nothing where it is not base64.
std::optional<std::string> base64_decode(std::string_view text);

// Whether metadata may leave under this name: lower-case letters, digits, `_`, `-`, `.`, not one of the protocol's own.
bool is_metadata_name(std::string_view name);

// Whether a value may leave as it is: visible ASCII and spaces.
bool is_metadata_value(std::string_view value);

// A name of binary metadata.
bool is_binary_name(std::string_view name);

}  // namespace headroom
