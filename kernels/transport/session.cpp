#include "session.hpp"

#include <algorithm>
#include <utility>

#include "http2.hpp"
#include "wire.hpp"

namespace headroom {
namespace {

// Control frames that nothing was asked with: enough for every client's settings, keepalive and bandwidth probes.
constexpr double kControlBurst = 200, kControlPerS = 20, kControlPerRequest = 2, kControlPerData = 1;
// Streams that a client opens and resets at once (CVE-2023-44487).
constexpr double kResetBurst = 2000, kResetPerS = 500;
// Smaller answers are not worth packing.
constexpr size_t kPackAbove = 1024;
// Smaller messages are copied behind their prefixes, larger ones stay where they are.
constexpr size_t kJoinUpTo = 1024;

constexpr const char* kMemoryFull = "messages of all connections fill the memory allowed; retry later";
constexpr std::string_view kServed = "identity,deflate,gzip";

}  // namespace

bool Allowance::spend(int64_t now_ns) {
  if (filled_ns_ != 0) tokens_ = std::min(burst_, tokens_ + static_cast<double>(now_ns - filled_ns_) * 1e-9 * per_s_);
  filled_ns_ = now_ns;
  if (tokens_ < 1) return false;
  tokens_ -= 1;
  return true;
}

void Allowance::earn(double tokens) { tokens_ = std::min(burst_, tokens_ + tokens); }

Session::Session(Host& host, const Limits& limits, uint64_t connection, std::shared_ptr<const std::string> peer)
    : host_(host), limits_(limits), connection_(connection), peer_(std::move(peer)),
      control_frames_(kControlBurst, kControlPerS), resets_(kResetBurst, kResetPerS) {
  session_ = http2::make_session(this, limits.max_streams, limits.max_header_bytes);
}

Session::~Session() {
  is_abused_ = true;  // nothing is counted any more
  for (auto& [id, stream] : streams_) on_close(*stream);
  nghttp2_session_del(session_);
}

bool Session::feed(const uint8_t* bytes, size_t size) {
  if (is_abused_) return false;
  return nghttp2_session_mem_recv(session_, bytes, size) >= 0 && !is_abused_;
}

bool Session::pull(std::string& out, size_t enough) {
  pulled_ = &out;
  pull_enough_ = enough;
  while (out.size() < enough) {
    const uint8_t* frame = nullptr;
    const ssize_t size = nghttp2_session_mem_send(session_, &frame);
    if (size < 0) return false;
    if (size == 0) break;
    out.append(reinterpret_cast<const char*>(frame), static_cast<size_t>(size));
  }
  return true;
}

bool Session::is_over() const {
  return nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0;
}

// Headers

int Session::on_header(Stream& stream, std::string_view name, std::string_view value) {
  stream.header_bytes += name.size() + value.size() + 32;  // as RFC 9113, section 6.5.2 counts
  if (stream.header_bytes > limits_.max_header_bytes) return 0;
  if (name[0] == ':') {
    if (name == ":path") stream.path = value;
    if (name == ":method") stream.verb = value;
    return 0;
  }
  if (name == "te" || name == "user-agent" || name == "accept" || name == "accept-encoding" || name == "content-length") return 0;
  if (name == "content-type") {
    stream.content_type = value;
    return 0;
  }
  if (name.substr(0, 5) == "grpc-") {
    if (name == "grpc-timeout") stream.timeout = value;
    else if (name == "grpc-encoding") stream.encoding = value;
    else if (name == "grpc-accept-encoding") stream.accept_encoding = value;
    if (!is_binary_name(name)) return 0;
  }
  if (name == "x-request-timeout-ms") stream.timeout_ms = value;
  stream.has_metadata = true;
  if (!is_binary_name(name)) {
    stream.metadata.push_back({std::string(name), std::string(value)});
    return 0;
  }
  while (true) {
    const size_t comma = std::min(value.find(','), value.size());
    auto decoded = base64_decode(value.substr(0, comma));
    if (!decoded) {
      stream.has_wrong_header = true;
      return 0;
    }
    stream.metadata.push_back({std::string(name), std::move(*decoded)});
    if (comma == value.size()) return 0;
    value.remove_prefix(comma + 1);
    stream.header_bytes += name.size() + 32;  // each value is a header of its own
    if (stream.header_bytes > limits_.max_header_bytes) return 0;
  }
}

void Session::on_headers(Stream& stream, bool is_end) {
  control_frames_.earn(kControlPerRequest);
  if (!open(stream)) return;
  if (is_end) on_half_close(stream);
}

// Makes the call, or answers why there is none.
bool Session::open(Stream& stream) {
  if (stream.verb != "POST") return answer_http(stream, "405"), false;
  if (stream.content_type.compare(0, 16, "application/grpc") != 0) return answer_http(stream, "415"), false;
  const Table& table = host_.table();
  const auto found = table.methods.find(stream.path);
  if (found == table.methods.end()) {
    host_.count(kUnknownRoute, Unseen::invalid);
    return fail(stream, kUnimplemented, "Method not found: " + stream.path.substr(0, 256)), false;
  }
  const Method& method = found->second;
  stream.names_model = method.names_model;
  auto call = std::make_shared<Call>();
  call->id = host_.next_call_id();
  call->connection = connection_;
  call->stream = stream.id;
  call->io_thread = host_.index();
  call->route = method.route;
  call->is_unary = method.is_unary;
  call->arrived_ns = host_.now_ns();
  call->peer = peer_;
  if (!host_.open_call()) {
    Status full{kResourceExhausted, std::to_string(limits_.max_calls) + " requests are in flight, which are allowed; retry later", {}};
    full.trailers = {{"error-kind", "overloaded"}, {"error-reason", "concurrency"}, {"grpc-retry-pushback-ms", "100"}, {"retry-after-ms", "100"}};
    host_.count(call->route, Unseen::concurrency);
    return finish(stream, std::move(full)), false;
  }
  stream.call = call;
  if (stream.header_bytes > limits_.max_header_bytes) {
    return fail(stream, kResourceExhausted, "metadata takes " + std::to_string(stream.header_bytes) + " bytes; allowed " +
                                                std::to_string(limits_.max_header_bytes)), false;
  }
  if (stream.has_wrong_header) return fail(stream, kInternal, "binary metadata is not base64"), false;
  stream.request_encoding = parse_encoding(stream.encoding);
  if (stream.request_encoding == Encoding::unknown) {
    return fail(stream, kUnimplemented, "grpc-encoding is '" + stream.encoding.substr(0, 64) + "'; allowed: identity, deflate, gzip"), false;
  }
  if (accepts(stream.accept_encoding, stream.request_encoding)) stream.answer_encoding = stream.request_encoding;
  int64_t allowed_ns = table.routes[call->route].budget_ns;
  if (!stream.timeout.empty()) {
    const auto timeout_ns = parse_grpc_timeout(stream.timeout);
    if (!timeout_ns) return fail(stream, kInternal, "grpc-timeout is '" + stream.timeout.substr(0, 32) + "'; allowed: up to 8 digits and a unit"), false;
    allowed_ns = std::min(allowed_ns, *timeout_ns);
  }
  if (call->is_unary && !stream.timeout_ms.empty()) {  // a stream's messages each have it, as their own
    if (const auto timeout_ns = parse_timeout_ms(stream.timeout_ms)) allowed_ns = std::min(allowed_ns, *timeout_ns);
  }
  const bool is_timed = call->is_unary || !stream.timeout.empty();
  call->deadline_ns = is_timed ? call->arrived_ns + allowed_ns : 0;
  call->metadata = std::move(stream.metadata);
  call->has_metadata = stream.has_metadata;
  if (is_timed) host_.wheel().set(stream.timer, call->deadline_ns, &stream);
  if (!call->is_unary) {
    stream.credit = method.credit;
    host_.deliver({call, Event::Kind::opened, kOk, {}});
  }
  return true;
}

void Session::answer_http(Stream& stream, const char* status) {
  const nghttp2_nv headers[] = {http2::literal(":status", status)};
  stream.is_finishing = true;
  nghttp2_submit_response(session_, stream.id, headers, 1, nullptr);
}

// Messages

int Session::on_data(Stream& stream, std::string_view bytes) {
  stream.unconsumed_bytes += bytes.size();
  while (!bytes.empty() && !stream.is_finishing) {
    switch (stream.reader.feed(bytes)) {
      case MessageReader::State::incomplete: break;
      case MessageReader::State::complete: on_message(stream); break;
      case MessageReader::State::malformed: fail(stream, kInternal, "a message's first byte is neither 0 nor 1"); break;
      case MessageReader::State::too_large:
        fail(stream, kResourceExhausted, "a message takes " + std::to_string(stream.reader.declared_bytes()) + " bytes; allowed " +
                                             std::to_string(limits_.max_message_bytes));
        break;
    }
  }
  if (!account(stream)) fail(stream, kResourceExhausted, kMemoryFull, Unseen::memory);
  consume(stream);
  return 0;
}

// Counts the beginning of a message that is still to come in full; whether there is room for it.
bool Session::account(Stream& stream) {
  const size_t held = stream.is_finishing ? 0 : stream.reader.held_bytes();
  const bool has_room = held <= stream.begun.size() || host_.memory()->has_room(held - stream.begun.size());
  stream.begun.resize(has_room ? held : 0, host_.memory());
  return has_room;
}

void Session::on_message(Stream& stream) {
  const bool is_packed = stream.reader.is_packed();
  std::string message = stream.reader.take();
  stream.begun.resize(0, host_.memory());
  if (is_packed && stream.request_encoding == Encoding::identity) {
    return fail(stream, kInternal, "a message is compressed, but grpc-encoding is not given");
  }
  if (stream.call->is_unary && stream.has_request) return fail(stream, kInternal, "a unary call has more than one message");
  if (!host_.memory()->has_room(Payload::cost(message.size()))) return fail(stream, kResourceExhausted, kMemoryFull, Unseen::memory);
  stream.has_request = true;
  stream.pending.push_back({Payload(std::move(message), host_.memory()), is_packed});
  if (!stream.call->is_unary) hand_over(stream);
}

// Gives Python what it may have: a request once its client has closed its side, messages of a stream as far as there is credit.
void Session::hand_over(Stream& stream) {
  const bool is_unary = stream.call->is_unary;
  while (!stream.pending.empty() && (is_unary ? stream.is_half_closed : stream.credit > 0)) {
    if (!unpack(stream, stream.pending.front())) return;
    Payload payload = std::move(stream.pending.front().payload);
    stream.pending.pop_front();
    if (is_unary) {
      if (stream.names_model) route_by_model(stream, payload.bytes());
      return host_.deliver({stream.call, Event::Kind::request, kOk, std::move(payload)});
    }
    stream.credit--;
    host_.deliver({stream.call, Event::Kind::message, kOk, std::move(payload)});
  }
  if (!is_unary && stream.pending.empty() && stream.is_half_closed && !stream.is_half_close_told) {
    stream.is_half_close_told = true;
    host_.deliver({stream.call, Event::Kind::half_closed, kOk, {}});
  }
}

// A message without its packing; false where it was wrong, or waits for a later turn: one of a few kilobytes may take the
// time of a thousand others.
bool Session::unpack(Stream& stream, Message& message) {
  if (!message.is_packed) return true;
  if (!host_.may_inflate()) {
    if (!std::exchange(stream.is_deferred, true)) deferred_.push_back(stream.id);
    return false;
  }
  std::string bytes;
  const Inflated result = inflate_message(stream.request_encoding, message.payload.bytes(), limits_.max_message_bytes, bytes);
  host_.inflated(bytes.size());
  if (result == Inflated::corrupt) return fail(stream, kInternal, "a message cannot be decompressed"), false;
  if (result == Inflated::too_large) {
    return fail(stream, kResourceExhausted, "a message decompresses to more than the " + std::to_string(limits_.max_message_bytes) + " bytes allowed"), false;
  }
  if (!host_.memory()->has_room(Payload::cost(bytes.size()))) return fail(stream, kResourceExhausted, kMemoryFull, Unseen::memory), false;
  message = {Payload(std::move(bytes), host_.memory()), false};
  return true;
}

bool Session::resume_deferred() {
  const std::vector<int32_t> ids = std::exchange(deferred_, {});
  for (const int32_t id : ids) {
    auto* stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(session_, id));
    if (stream == nullptr || stream->is_finishing) continue;
    stream->is_deferred = false;
    hand_over(*stream);
    consume(*stream);
  }
  return !deferred_.empty();
}

// Lets the client send more of this stream, unless what it has sent already waits for Python.
void Session::consume(Stream& stream) {
  const bool is_waiting = !stream.pending.empty() && !stream.call->is_unary;
  if (stream.unconsumed_bytes == 0 || is_waiting) return;
  nghttp2_session_consume_stream(session_, stream.id, stream.unconsumed_bytes);
  stream.unconsumed_bytes = 0;
}

void Session::on_half_close(Stream& stream) {
  stream.is_half_closed = true;
  if (stream.is_finishing || !stream.call) return;
  if (!stream.reader.is_between_messages()) return fail(stream, kInternal, "the last message is incomplete");
  if (stream.call->is_unary && !stream.has_request) return fail(stream, kInternal, "a unary call has no message");
  hand_over(stream);
}

// Reads model_name (field 1) and model_version (field 2), where they come first, as they do from every client.
void Session::route_by_model(Stream& stream, std::string_view message) {
  const auto leading_text = [&message](char tag) {
    if (message.size() < 2 || message[0] != tag || static_cast<unsigned char>(message[1]) >= 128) return std::string_view{};
    const size_t size = static_cast<unsigned char>(message[1]);
    const std::string_view text = message.substr(2, size);
    message.remove_prefix(std::min(message.size(), 2 + size));
    return text;
  };
  const std::string_view name = leading_text(0x0a);
  const std::string_view version = leading_text(0x12);
  const Table& table = host_.table();
  const auto found = table.models.find(model_key(name, version));
  if (found == table.models.end()) return;
  Call& call = *stream.call;
  call.route = found->second;
  call.deadline_ns = std::min(call.deadline_ns, call.arrived_ns + table.routes[call.route].budget_ns);
  host_.wheel().set(stream.timer, call.deadline_ns, &stream);
}

// Ends

void Session::on_close(Stream& stream) {
  stream.timer.cancel();
  if (!stream.call) return;
  host_.close_call();
  if (!stream.call->settle()) return;
  host_.ended(stream.call, kCancelled);
  // A client may have us end streams without a reset of its own, by breaking the rules of one (CVE-2025-8671).
  if (!stream.is_reset && !is_abused_ && !resets_.spend(host_.now_ns())) send_away(false);
}

void Session::expire(Stream& stream) {
  if (!stream.call || !stream.call->settle()) return;
  const double allowed_ms = static_cast<double>(stream.timer.at_ns - stream.call->arrived_ns) / 1e6;
  char text[64];
  snprintf(text, sizeof text, "no answer within the %.1f ms allowed", allowed_ms);
  host_.ended(stream.call, kDeadlineExceeded);
  finish(stream, {kDeadlineExceeded, text, {{"error-kind", "deadline_exceeded"}}});
}

void Session::fail(Stream& stream, int code, std::string message, Unseen what) {
  if (stream.is_finishing) return;
  if (stream.call) {
    if (!stream.call->settle()) return;
    if (stream.call->is_unary) host_.count(stream.call->route, what);
    else host_.ended(stream.call, code);
  }
  Status status{code, std::move(message), {}};
  if (what == Unseen::memory) status.trailers = {{"error-kind", "overloaded"}, {"error-reason", "memory"}, {"grpc-retry-pushback-ms", "100"}};
  finish(stream, std::move(status));
}

Stream* Session::stream_of(const CallPtr& call) {
  auto* stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(session_, call->stream));
  return stream != nullptr && stream->call == call ? stream : nullptr;
}

void Session::refuse(const CallPtr& call, const Status& status) {
  if (Stream* stream = stream_of(call); stream != nullptr && call->settle()) finish(*stream, Status(status));
}

void Session::apply(Command& command) {
  Stream* stream = stream_of(command.call);
  if (stream == nullptr || stream->is_finishing) return;
  switch (command.kind) {
    case Command::Kind::limit:
      host_.wheel().set(stream->timer, command.value, stream);
      break;
    case Command::Kind::credit:
      stream->credit += command.value;
      hand_over(*stream);
      consume(*stream);
      break;
    case Command::Kind::message:
      if (!stream->has_sent_headers) send_headers(*stream, command.initial_metadata);
      if (command.has_body) send_message(*stream, std::move(command.body));
      resume(*stream);
      break;
    case Command::Kind::finish:
      if (!stream->has_sent_headers && (command.has_body || !command.initial_metadata.empty())) send_headers(*stream, command.initial_metadata);
      if (command.has_body) send_message(*stream, std::move(command.body));
      finish(*stream, std::move(command.status));
      break;
  }
}

// Answers

void Session::send_message(Stream& stream, std::string&& body) {
  if (stream.out.empty()) stream.moved_ns = host_.now_ns();
  const auto declared = static_cast<int64_t>(body.size());  // as Python has counted it
  const bool is_packed = stream.answer_encoding != Encoding::identity && body.size() > kPackAbove;
  if (is_packed) body = deflate_message(stream.answer_encoding, body);
  std::string prefix;
  append_prefix(prefix, is_packed, body.size());
  count_unsent(stream, static_cast<int64_t>(kPrefixBytes + body.size()) - declared);
  stream.out_bytes += kPrefixBytes + body.size();
  if (body.size() <= kJoinUpTo) {
    prefix += body;
    stream.out.push_back(std::move(prefix));
  } else {
    stream.out.push_back(std::move(prefix));
    stream.out.push_back(std::move(body));
  }
}

// Bytes of a stream that wait for the client; Python hears of it when they become few.
void Session::count_unsent(Stream& stream, int64_t difference) {
  if (stream.call->is_unary) return;
  const int64_t before = stream.call->unsent_bytes.fetch_add(difference);
  if (before >= kUnsentLow && before + difference < kUnsentLow) host_.deliver({stream.call, Event::Kind::writable, kOk, {}});
}

void Session::on_sent(Stream& stream, size_t size) {
  stream.moved_ns = host_.now_ns();
  count_unsent(stream, -static_cast<int64_t>(size));
  control_frames_.earn(kControlPerData);  // clients measure their bandwidth with a ping for what they receive
}

void Session::send_headers(Stream& stream, const Metadata& metadata) {
  http2::Headers headers;
  headers.add_literal(":status", "200");
  headers.add_literal("content-type", "application/grpc");
  if (stream.answer_encoding != Encoding::identity) headers.add("grpc-encoding", encoding_name(stream.answer_encoding));
  if (!stream.accept_encoding.empty()) headers.add_literal("grpc-accept-encoding", kServed.data());
  headers.add(metadata);
  stream.has_sent_headers = true;
  const nghttp2_data_provider provider{{.ptr = &stream}, http2::read_data};
  nghttp2_submit_response(session_, stream.id, headers.data(), headers.size(), &provider);
}

void Session::finish(Stream& stream, Status&& status) {
  stream.is_finishing = true;
  stream.timer.cancel();
  stream.pending.clear();
  stream.reader.drop();
  stream.begun.resize(0, host_.memory());
  consume(stream);
  stream.status = std::move(status);
  if (stream.has_sent_headers) return resume(stream);
  http2::Headers headers;  // trailers alone
  headers.add_literal(":status", "200");
  headers.add_literal("content-type", "application/grpc");
  if (stream.status.code == kUnimplemented) headers.add_literal("grpc-accept-encoding", kServed.data());
  headers.add(stream.status);
  stream.has_sent_headers = stream.has_sent_trailers = true;
  nghttp2_submit_response(session_, stream.id, headers.data(), headers.size(), nullptr);
}

void Session::resume(Stream& stream) { nghttp2_session_resume_data(session_, stream.id); }

void Session::submit_trailers(Stream& stream) {
  http2::Headers headers;
  headers.add(stream.status);
  stream.has_sent_trailers = true;
  nghttp2_submit_trailer(session_, stream.id, headers.data(), headers.size());
}

// The connection

int Session::on_control_frame(const nghttp2_frame& frame) {
  const bool is_ack = (frame.hd.flags & NGHTTP2_FLAG_ACK) != 0;
  bool is_allowed = true;
  switch (frame.hd.type) {
    case NGHTTP2_SETTINGS: has_settings_ = true; [[fallthrough]];
    case NGHTTP2_PING: is_allowed = is_ack || control_frames_.spend(host_.now_ns()); break;
    case NGHTTP2_PRIORITY: is_allowed = control_frames_.spend(host_.now_ns()); break;
    case NGHTTP2_RST_STREAM: {
      auto* stream = static_cast<Stream*>(nghttp2_session_get_stream_user_data(session_, frame.hd.stream_id));
      if (stream != nullptr) stream->is_reset = true;
      is_allowed = resets_.spend(host_.now_ns());
      break;
    }
    case NGHTTP2_DATA:
      if (frame.hd.length == 0 && (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) is_allowed = control_frames_.spend(host_.now_ns());
      break;
    default: break;
  }
  if (!is_allowed && !is_abused_) send_away(frame.hd.type == NGHTTP2_PING);
  return 0;
}

void Session::send_away(bool is_ping) {
  is_abused_ = true;
  constexpr std::string_view kWhy = "too_many_pings";  // the words gRPC's clients know
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_), NGHTTP2_ENHANCE_YOUR_CALM,
                        is_ping ? reinterpret_cast<const uint8_t*>(kWhy.data()) : nullptr, is_ping ? kWhy.size() : 0);
}

bool Session::reset_stalled(int64_t since_ns) {
  bool has_any = false;
  for (auto& [id, stream] : streams_) {
    const bool owes_trailers = stream->is_finishing && stream->has_sent_headers && !stream->has_sent_trailers;
    if ((stream->out.empty() && !owes_trailers) || stream->moved_ns > since_ns) continue;
    has_any = true;
    nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
  }
  return has_any;
}

void Session::ping() { nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr); }

void Session::announce_drain() { nghttp2_submit_shutdown_notice(session_); }

void Session::finish_drain() {
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_), NGHTTP2_NO_ERROR, nullptr, 0);
}

}  // namespace headroom
