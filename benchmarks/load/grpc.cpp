// gRPC calls on one HTTP/2 session. The status of a call is the grpc-status of its trailers; a stream the server
// declares unprocessed (GOAWAY, REFUSED_STREAM) goes back to the engine to be sent elsewhere.
#include "grpc.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <new>
#include <utility>

namespace load {

namespace {

constexpr int32_t kConnectionWindowBytes = 64 << 20;
constexpr uint32_t kStreamWindowBytes = 16 << 20;
constexpr size_t kWriteBytes = 256 << 10;  // gathered for one send()

std::string lower_case(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
}

nghttp2_nv field_of(const std::string& name, const std::string& value) {
    const auto bytes = [](const std::string& text) {
        return reinterpret_cast<uint8_t*>(const_cast<char*>(text.data()));  // nghttp2 only reads it
    };
    return {bytes(name), bytes(value), name.size(), value.size(),
            NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE};
}

}  // namespace

std::string grpc_prefix(size_t body_bytes) {
    std::string prefix(5, '\0');
    for (size_t i = 0; i < 4; ++i) prefix[4 - i] = static_cast<char>(body_bytes >> (8 * i));
    return prefix;
}

GrpcConnection::GrpcConnection(const Options& options, int epoll, Caller& caller, const Messages& messages,
                               const Numbering& numbering)
    : Connection(options.target, epoll, caller),
      messages_(messages),
      numbering_(numbering),
      wanted_streams_(static_cast<size_t>(options.num_streams)),
      session_(make_session(*this), &nghttp2_session_del) {
    own_headers_ = {{":method", "POST"},
                    {":scheme", "http"},
                    {":path", target_.path},
                    {":authority", target_.authority},
                    {"te", "trailers"},
                    {"content-type", "application/grpc"},
                    {"user-agent", "headroom-load"}};
    for (const auto& [name, value] : options.headers) own_headers_.emplace_back(lower_case(name), value);
    for (const auto& [name, value] : own_headers_) headers_.push_back(field_of(name, value));
    const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                               {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kStreamWindowBytes}};
    nghttp2_submit_settings(session_.get(), NGHTTP2_FLAG_NONE, settings, std::size(settings));
    nghttp2_session_set_local_window_size(session_.get(), NGHTTP2_FLAG_NONE, 0, kConnectionWindowBytes);
}

nghttp2_session* GrpcConnection::make_session(GrpcConnection& connection) {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session* session = nullptr;
    if (nghttp2_session_callbacks_new(&callbacks) != 0) throw std::bad_alloc();
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, on_frame_not_sent);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    const int error = nghttp2_session_client_new(&session, callbacks, &connection);
    nghttp2_session_callbacks_del(callbacks);
    if (error != 0) throw std::bad_alloc();
    return session;
}

size_t GrpcConnection::num_free_streams() const {
    const size_t most = most_streams();
    return phase() == Phase::open && most > calls_.size() ? most - calls_.size() : 0;
}

size_t GrpcConnection::most_streams() const {
    const size_t allowed = nghttp2_session_get_remote_settings(session_.get(), NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
    return std::min(wanted_streams_, allowed);
}

void GrpcConnection::submit(Request& request) {
    nghttp2_data_provider body{};
    body.read_callback = read_body;
    const int32_t stream_id =
        nghttp2_submit_request(session_.get(), nullptr, headers_.data(), headers_.size(), &body, nullptr);
    if (stream_id < 0) {  // the connection has used up its stream ids
        retire();
        return caller_.on_unprocessed(request);
    }
    request.stream_id = stream_id;
    Call& call = calls_[stream_id];
    call.request = &request;
    call.unsent = messages_.render(request.message, request.first_number, numbering_, call.scratch);
}

void GrpcConnection::abandon(Request& request) {
    calls_.erase(request.stream_id);
    nghttp2_submit_rst_stream(session_.get(), NGHTTP2_FLAG_NONE, request.stream_id, NGHTTP2_CANCEL);
    close_if_done();
}

std::string_view GrpcConnection::pending_bytes() {
    if (num_consumed_ == out_.size()) {
        out_.clear();
        num_consumed_ = 0;
    }
    while (out_.size() < kWriteBytes) {
        const uint8_t* bytes = nullptr;
        const ssize_t num_bytes = nghttp2_session_mem_send(session_.get(), &bytes);
        if (num_bytes <= 0) break;
        out_.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(num_bytes));
    }
    return std::string_view(out_).substr(num_consumed_);
}

void GrpcConnection::consume(size_t num_bytes) { num_consumed_ += num_bytes; }

void GrpcConnection::on_bytes(const char* data, size_t num_bytes) {
    const ssize_t taken = nghttp2_session_mem_recv(session_.get(), reinterpret_cast<const uint8_t*>(data), num_bytes);
    const bool is_over = !nghttp2_session_want_read(session_.get()) && !nghttp2_session_want_write(session_.get());
    if (taken < 0 || is_over) {
        fail_all_as_protocol_error();
        return close();
    }
    close_if_done();
}

void GrpcConnection::on_end() {
    // The session has said goodbye by itself: what came was not HTTP/2.
    if (!nghttp2_session_want_read(session_.get())) return fail_all_as_protocol_error();
    for (const auto& [stream_id, call] : std::exchange(calls_, {})) {
        caller_.on_cut_off(*call.request, call.has_answer_bytes);
    }
}

void GrpcConnection::fail_all_as_protocol_error() {
    for (const auto& [stream_id, call] : std::exchange(calls_, {})) caller_.on_protocol_error(*call.request);
}

void GrpcConnection::close_if_done() {
    if (phase() == Phase::retiring && calls_.empty()) close();
}

ssize_t GrpcConnection::read_body(nghttp2_session*, int32_t stream_id, uint8_t* buffer, size_t capacity,
                                  uint32_t* flags, nghttp2_data_source*, void* user_data) {
    const auto found = self(user_data).calls_.find(stream_id);
    if (found == self(user_data).calls_.end()) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    std::string_view& unsent = found->second.unsent;
    const size_t num_bytes = std::min(capacity, unsent.size());
    std::memcpy(buffer, unsent.data(), num_bytes);
    unsent.remove_prefix(num_bytes);
    if (unsent.empty()) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(num_bytes);
}

int GrpcConnection::on_header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
                              const uint8_t* value, size_t value_bytes, uint8_t, void* user_data) {
    const auto found = self(user_data).calls_.find(frame->hd.stream_id);
    if (found == self(user_data).calls_.end()) return 0;
    found->second.has_answer_bytes = true;
    if (std::string_view(reinterpret_cast<const char*>(name), name_bytes) == "grpc-status") {
        const char* text = reinterpret_cast<const char*>(value);
        std::from_chars(text, text + value_bytes, found->second.status);
    }
    return 0;
}

int GrpcConnection::on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user_data) {
    GrpcConnection& connection = self(user_data);
    if (frame->hd.type == NGHTTP2_SETTINGS && connection.phase() == Phase::greeting) connection.become_open();
    if (frame->hd.type == NGHTTP2_GOAWAY) connection.retire();
    return 0;
}

int GrpcConnection::on_frame_not_sent(nghttp2_session*, const nghttp2_frame* frame, int, void* user_data) {
    // A request still in the session's queue when GOAWAY came.
    if (frame->hd.type != NGHTTP2_HEADERS) return 0;
    return on_stream_close(nullptr, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM, user_data);
}

int GrpcConnection::on_stream_close(nghttp2_session*, int32_t stream_id, uint32_t error_code, void* user_data) {
    auto call = self(user_data).calls_.extract(stream_id);
    if (!call.empty()) self(user_data).report(call.mapped(), error_code);
    return 0;
}

void GrpcConnection::report(const Call& call, uint32_t error_code) {
    if (call.status != kNoStatus) {
        note_answer();
        return caller_.on_answer(*call.request, call.status);
    }
    if (error_code == NGHTTP2_REFUSED_STREAM) {
        // Some servers count a stream until they have tidied it away: without a step back the refusals go on for ever.
        wanted_streams_ = std::max<size_t>(2, most_streams()) - 1;
        return caller_.on_unprocessed(*call.request);
    }
    if (error_code != NGHTTP2_NO_ERROR) return caller_.on_cut_off(*call.request, call.has_answer_bytes);
    caller_.on_protocol_error(*call.request);  // an answer without grpc-status
}

}  // namespace load
