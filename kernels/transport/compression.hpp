// gRPC's message encodings: gzip and deflate (zlib's format), bounded both ways.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace headroom {

enum class Encoding { identity, gzip, deflate, unknown };
enum class Inflated { ok, corrupt, too_large };

// The encoding of a `grpc-encoding` header.
Encoding parse_encoding(std::string_view name);

// Whether `grpc-accept-encoding` lists `encoding`.
bool accepts(std::string_view accept_encoding, Encoding encoding);

std::string_view encoding_name(Encoding encoding);

// Writes what `packed` holds to `bytes`, of at most `max_bytes`.
Inflated inflate_message(Encoding encoding, std::string_view packed, size_t max_bytes, std::string& bytes);

// `bytes` packed, fast rather than small.
std::string deflate_message(Encoding encoding, std::string_view bytes);

}  // namespace headroom
