// Unary gRPC over HTTP/2 with prior knowledge (nghttp2): many calls in flight per connection. Made by the engine.
#pragma once

#include <nghttp2/nghttp2.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "connection.hpp"
#include "messages.hpp"

namespace load {

// The five bytes before a protobuf message of that length: not compressed, length big-endian.
std::string grpc_prefix(size_t body_bytes);

class GrpcConnection final : public Connection {
public:
    GrpcConnection(const Options& options, int epoll, Caller& caller, const Messages& messages,
                   const Numbering& numbering);

    size_t num_free_streams() const override;
    void submit(Request& request) override;
    void abandon(Request& request) override;

protected:
    // As gRPC's own clients do: before its SETTINGS nobody knows how many streams the server allows.
    bool awaits_greeting() const override { return true; }
    std::string_view pending_bytes() override;
    void consume(size_t num_bytes) override;
    void on_bytes(const char* data, size_t num_bytes) override;
    void on_end() override;

private:
    static constexpr int kNoStatus = -1;

    struct Call {
        Request* request = nullptr;
        std::string scratch;
        std::string_view unsent;
        int status = kNoStatus;  // grpc-status
        bool has_answer_bytes = false;
    };

    static GrpcConnection& self(void* user_data) { return *static_cast<GrpcConnection*>(user_data); }
    static ssize_t read_body(nghttp2_session*, int32_t stream_id, uint8_t* buffer, size_t capacity, uint32_t* flags,
                             nghttp2_data_source* source, void* user_data);
    static int on_header(nghttp2_session*, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
                         const uint8_t* value, size_t value_bytes, uint8_t flags, void* user_data);
    static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user_data);
    static int on_frame_not_sent(nghttp2_session*, const nghttp2_frame* frame, int error, void* user_data);
    static int on_stream_close(nghttp2_session*, int32_t stream_id, uint32_t error_code, void* user_data);
    static nghttp2_session* make_session(GrpcConnection& connection);

    size_t most_streams() const;
    void report(const Call& call, uint32_t error_code);
    void fail_all_as_protocol_error();
    void close_if_done();

    const Messages& messages_;
    const Numbering& numbering_;
    size_t wanted_streams_;
    std::unique_ptr<nghttp2_session, decltype(&nghttp2_session_del)> session_;
    std::vector<nghttp2_nv> headers_;
    std::vector<std::pair<std::string, std::string>> own_headers_;  // what headers_ points into
    std::unordered_map<int32_t, Call> calls_;
    std::string out_;
    size_t num_consumed_ = 0;
};

}  // namespace load
