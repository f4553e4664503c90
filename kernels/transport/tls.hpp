// TLS by OpenSSL: a context from files, replaced as a whole when they change.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

namespace headroom {

struct TlsFiles {
  std::string certificate;  // PEM, the server's first, then the chain
  std::string key;          // PEM
  std::string client_ca;    // PEM; where it is given, clients must show a certificate signed by one of these
};

using TlsContext = std::shared_ptr<SSL_CTX>;

// TLS 1.2 and later, HTTP/2 by ALPN. Throws std::runtime_error, in words for a person, naming the file.
TlsContext make_tls_context(const TlsFiles& files);

}  // namespace headroom
