// libFuzzer target of the text and message formats: what is decoded encodes back, and nothing is read past its end.
#include <cstdint>
#include <string>
#include <string_view>

#include "compression.hpp"
#include "messages.hpp"
#include "wire.hpp"

using namespace headroom;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto require = [](bool holds) {
    if (!holds) __builtin_trap();
  };
  if (const auto ns = parse_grpc_timeout(text)) require(*ns >= 0);
  if (const auto ns = parse_timeout_ms(text)) require(*ns > 0 && *ns <= 3'600'000'000'000);
  require(is_metadata_value(percent_encode(text)) || size == 0 || text.front() == ' ' || text.back() == ' ');
  require(base64_decode(base64_encode(text)) == std::string(text));
  base64_decode(text);
  accepts(text, Encoding::gzip);
  std::string bytes;
  for (const Encoding encoding : {Encoding::gzip, Encoding::deflate}) {
    inflate_message(encoding, text, 4096, bytes);
    require(bytes.size() <= 4097);
    if (size <= 4096) {
      require(inflate_message(encoding, deflate_message(encoding, text), 4096, bytes) == Inflated::ok);
      require(bytes == text);
    }
  }
  MessageReader reader(4096);
  std::string_view rest = text;
  while (!rest.empty()) {
    const auto state = reader.feed(rest);
    if (state == MessageReader::State::complete) require(reader.take().size() <= 4096);
    else if (state != MessageReader::State::incomplete) break;
  }
  return 0;
}
