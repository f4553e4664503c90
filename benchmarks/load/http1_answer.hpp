// Parser of one HTTP/1.1 answer (RFC 9112), fed with whatever a read returned. Finds the status and where the answer
// ends; the body itself is skipped. Used by Http1Connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace load {

class Http1Answer {
public:
    // `expects_body` is false for answers to HEAD.
    explicit Http1Answer(bool expects_body) : expects_body_(expects_body) {}

    // Takes the bytes up to the end of the answer; returns how many those were.
    size_t feed(std::string_view bytes);
    // The peer closed: ends an answer whose length is given by the end of the connection.
    void feed_end();

    bool has_bytes() const { return has_bytes_; }
    bool is_complete() const { return stage_ == Stage::complete; }
    bool is_malformed() const { return stage_ == Stage::malformed; }
    bool keeps_alive() const { return keeps_alive_; }
    int status() const { return status_; }

private:
    enum class Stage { head, sized_body, body_to_end, chunk_size, chunk, chunk_end, trailers, complete, malformed };

    size_t feed_head(std::string_view bytes);
    size_t feed_sized(std::string_view bytes, Stage next);
    size_t feed_line(std::string_view bytes);
    void on_line();
    void parse_head();
    bool parse_status_line(std::string_view line);
    bool parse_field(std::string_view line);
    void parse_chunk_size();
    Stage stage_after_head() const;

    bool expects_body_;
    Stage stage_ = Stage::head;
    bool has_bytes_ = false;
    bool keeps_alive_ = true;
    bool is_chunked_ = false;
    bool has_length_ = false;
    int status_ = 0;
    uint64_t remaining_ = 0;
    std::string text_;  // the head, or a line of the chunked coding, as far as it has come
};

}  // namespace load
