#include "compression.hpp"

#include <zlib.h>

#include <algorithm>
#include <stdexcept>

namespace headroom {
namespace {

constexpr int kGzipWindowBits = 15 + 16;
constexpr int kZlibWindowBits = 15;
constexpr int kMemoryLevel = 8;
constexpr size_t kChunk = 64 << 10;

int window_bits(Encoding encoding) { return encoding == Encoding::gzip ? kGzipWindowBits : kZlibWindowBits; }

// zlib counts in 32 bits.
uInt clamped(size_t size) { return static_cast<uInt>(std::min<size_t>(size, 1U << 30)); }

// Frees what zlib holds, whatever happens.
template <int (*end)(z_stream*)>
struct Ending {
  z_stream& stream;
  ~Ending() { end(&stream); }
};

Bytef* input(std::string_view bytes) { return reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data())); }

}  // namespace

Encoding parse_encoding(std::string_view name) {
  if (name.empty() || name == "identity") return Encoding::identity;
  if (name == "gzip") return Encoding::gzip;
  if (name == "deflate") return Encoding::deflate;
  return Encoding::unknown;
}

std::string_view encoding_name(Encoding encoding) {
  return encoding == Encoding::gzip ? "gzip" : encoding == Encoding::deflate ? "deflate" : "identity";
}

bool accepts(std::string_view accept_encoding, Encoding encoding) {
  const std::string_view wanted = encoding_name(encoding);
  while (!accept_encoding.empty()) {
    const size_t comma = std::min(accept_encoding.find(','), accept_encoding.size());
    std::string_view name = accept_encoding.substr(0, comma);
    while (!name.empty() && name.front() == ' ') name.remove_prefix(1);
    while (!name.empty() && name.back() == ' ') name.remove_suffix(1);
    if (name == wanted) return true;
    accept_encoding.remove_prefix(std::min(comma + 1, accept_encoding.size()));
  }
  return false;
}

Inflated inflate_message(Encoding encoding, std::string_view packed, size_t max_bytes, std::string& bytes) {
  z_stream stream{};
  if (inflateInit2(&stream, window_bits(encoding)) != Z_OK) throw std::bad_alloc();
  const Ending<inflateEnd> ending{stream};
  bytes.clear();
  stream.next_in = input(packed);
  stream.avail_in = clamped(packed.size());
  int state = Z_OK;
  while (state == Z_OK) {
    const size_t filled = bytes.size();
    const size_t room = std::min(std::max(kChunk, filled), max_bytes + 1 - filled);
    if (room == 0) break;
    bytes.resize(filled + room);
    stream.next_out = reinterpret_cast<Bytef*>(bytes.data() + filled);
    stream.avail_out = clamped(room);
    state = inflate(&stream, Z_NO_FLUSH);
    bytes.resize(bytes.size() - stream.avail_out);
    if (state == Z_OK && bytes.size() == filled && stream.avail_in == 0) state = Z_BUF_ERROR;  // it ends too early
  }
  const bool is_all = state == Z_STREAM_END && stream.avail_in == 0;
  if (bytes.size() > max_bytes) return Inflated::too_large;
  return is_all ? Inflated::ok : Inflated::corrupt;
}

std::string deflate_message(Encoding encoding, std::string_view bytes) {
  z_stream stream{};
  if (deflateInit2(&stream, Z_BEST_SPEED, Z_DEFLATED, window_bits(encoding), kMemoryLevel, Z_DEFAULT_STRATEGY) != Z_OK) {
    throw std::bad_alloc();
  }
  const Ending<deflateEnd> ending{stream};
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = input(bytes);
  stream.avail_in = clamped(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = clamped(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(packed.size() - stream.avail_out);
  return packed;
}

}  // namespace headroom
