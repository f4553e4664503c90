// HTTP/2 and gRPC on one connection, without its socket: bytes in, bytes out, events to the host, commands from Python.
// Belongs to one I/O thread.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "call.hpp"
#include "compression.hpp"
#include "config.hpp"
#include "inbox.hpp"
#include "messages.hpp"
#include "queue.hpp"
#include "wheel.hpp"

namespace headroom {

// Python holds back, once this much of one stream's answers waits for the client, until this little does.
constexpr int64_t kUnsentHigh = 256 << 10;
constexpr int64_t kUnsentLow = 64 << 10;

class Session;

// The I/O thread, as a session sees it.
class Host {
 public:
  virtual ~Host() = default;
  virtual int64_t now_ns() const = 0;
  virtual const Table& table() const = 0;
  virtual TimingWheel& wheel() = 0;
  virtual const std::shared_ptr<Memory>& memory() = 0;
  virtual uint64_t next_call_id() = 0;
  virtual uint32_t index() const = 0;
  // Room for one more open call, of the whole server.
  virtual bool open_call() = 0;
  virtual void close_call() = 0;
  virtual void deliver(Event&& event) = 0;
  virtual void ended(const CallPtr& call, int code) = 0;
  virtual void count(uint32_t route, Unseen what) = 0;
  // Whether more may be inflated in this turn; how much was.
  virtual bool may_inflate() const = 0;
  virtual void inflated(size_t bytes) = 0;
};

// A bucket of tokens that fills by itself: what a peer may ask of us that costs it nothing.
class Allowance {
 public:
  Allowance(double burst, double per_s) : burst_(burst), per_s_(per_s), tokens_(burst) {}
  bool spend(int64_t now_ns);
  void earn(double tokens);

 private:
  double burst_, per_s_, tokens_;
  int64_t filled_ns_ = 0;
};

struct Message {
  Payload payload;
  bool is_packed = false;
};

struct Stream {
  Stream(Session& owner, int32_t stream_id, size_t max_message_bytes) : session(owner), id(stream_id), reader(max_message_bytes) {}

  Session& session;
  const int32_t id;
  CallPtr call;  // from the end of its headers on, unless they were wrong
  Timer timer;
  bool names_model = false;

  // headers
  std::string path;
  std::string verb;
  std::string content_type;
  std::string timeout;
  std::string timeout_ms;
  std::string encoding;
  std::string accept_encoding;
  Metadata metadata;
  size_t header_bytes = 0;
  bool has_wrong_header = false;
  bool has_metadata = false;

  // what comes
  MessageReader reader;
  Share begun;  // of the message that is being read
  Encoding request_encoding = Encoding::identity;
  Encoding answer_encoding = Encoding::identity;
  bool has_request = false;
  bool is_half_closed = false;
  bool is_half_close_told = false;
  bool is_reset = false;     // by the client
  bool is_deferred = false;  // its message is inflated in a later turn
  Queue<Message> pending;    // for which there is no credit yet; of a unary call, until the client has closed its side
  int64_t credit = 0;
  size_t unconsumed_bytes = 0;

  // what goes
  Queue<std::string> out;  // prefixes and messages; the first one from out_at on
  size_t out_at = 0;
  size_t out_bytes = 0;
  int64_t moved_ns = 0;  // when the client last took something, or had nothing to take
  bool has_sent_headers = false;
  bool has_sent_trailers = false;
  bool is_finishing = false;
  Status status;
};

class Session {
 public:
  Session(Host& host, const Limits& limits, uint64_t connection, std::shared_ptr<const std::string> peer);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // False: the connection is of no use any more, but for what `pull` still gives.
  bool feed(const uint8_t* bytes, size_t size);
  // Appends frames to `out` until it holds `enough` bytes or there are none; false as for `feed`.
  bool pull(std::string& out, size_t enough);
  bool is_over() const;

  void apply(Command& command);
  void refuse(const CallPtr& call, const Status& status);
  void expire(Stream& stream);

  // Goes on with messages that had to wait for their turn to be inflated; whether some still do.
  bool resume_deferred();
  bool has_deferred() const { return !deferred_.empty(); }
  // Resets streams whose answers the client has not taken since `since_ns`; whether there were any.
  bool reset_stalled(int64_t since_ns);
  void ping();
  void announce_drain();
  void finish_drain();
  // Whether the client has shown that it speaks HTTP/2.
  bool is_established() const { return has_settings_; }

 private:
  friend struct Callbacks;

  Stream* stream_of(const CallPtr& call);
  int on_header(Stream& stream, std::string_view name, std::string_view value);
  void on_headers(Stream& stream, bool is_end);
  int on_data(Stream& stream, std::string_view bytes);
  void on_message(Stream& stream);
  void on_half_close(Stream& stream);
  void on_close(Stream& stream);
  int on_control_frame(const nghttp2_frame& frame);

  bool open(Stream& stream);
  void route_by_model(Stream& stream, std::string_view message);
  void hand_over(Stream& stream);
  bool unpack(Stream& stream, Message& message);
  void consume(Stream& stream);
  bool account(Stream& stream);
  void answer_http(Stream& stream, const char* status);
  void fail(Stream& stream, int code, std::string message, Unseen what = Unseen::invalid);
  void send_message(Stream& stream, std::string&& body);
  void count_unsent(Stream& stream, int64_t difference);
  void on_sent(Stream& stream, size_t size);
  void send_headers(Stream& stream, const Metadata& metadata);
  void finish(Stream& stream, Status&& status);
  void resume(Stream& stream);
  void submit_trailers(Stream& stream);
  void send_away(bool is_ping);

  Host& host_;
  const Limits& limits_;
  const uint64_t connection_;
  const std::shared_ptr<const std::string> peer_;
  nghttp2_session* session_ = nullptr;
  std::unordered_map<int32_t, std::unique_ptr<Stream>> streams_;
  std::vector<int32_t> deferred_;
  std::string* pulled_ = nullptr;
  size_t pull_enough_ = 0;
  bool has_settings_ = false;
  Allowance control_frames_;
  Allowance resets_;
  bool is_abused_ = false;
};

}  // namespace headroom
