package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

var (
	errNoKey    = errdefs.New(errdefs.ErrUnauthorized, "this server wants an API key: send the header \"Authorization: Bearer <key>\" or \"x-api-key: <key>\"")
	errWrongKey = errdefs.New(errdefs.ErrUnauthorized, "the API key is not one of this server's")
)

// apiKeys are the digests of the keys of which a request must carry one. Digests have one length, so that the time of
// a comparison tells nothing of a key.
type apiKeys [][sha256.Size]byte

func newAPIKeys(keys []string) apiKeys {
	var out apiKeys
	for _, k := range keys {
		if k != "" {
			out = append(out, sha256.Sum256([]byte(k)))
		}
	}
	return out
}

// know reports whether key is one of the keys. It always looks at all of them.
func (k apiKeys) know(key string) bool {
	digest, found := sha256.Sum256([]byte(key)), 0
	for i := range k {
		found |= subtle.ConstantTimeCompare(digest[:], k[i][:])
	}
	return found == 1
}

// check returns why a request may not be answered, nil if it may.
func (k apiKeys) check(r *http.Request) error {
	given := sentKeys(r)
	if len(given) == 0 {
		return errNoKey
	}
	for _, key := range given {
		if k.know(key) {
			return nil
		}
	}
	return errWrongKey
}

// sentKeys returns the keys of a request, which has one in the form of each client library that its user knows.
func sentKeys(r *http.Request) []string {
	var keys []string
	if scheme, key, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		keys = append(keys, strings.TrimSpace(key))
	}
	if key := r.Header.Get("X-Api-Key"); key != "" {
		keys = append(keys, key)
	}
	return keys
}

// checkKey refuses requests without a key, if the server has any, but for those that ask whether it is there and what
// it is.
func (s *Server) checkKey(next http.Handler) http.Handler {
	keys := newAPIKeys(s.params.APIKeys)
	if len(keys) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asksForServer(r) {
			if err := keys.check(r); err != nil {
				w.Header().Set("WWW-Authenticate", "Bearer")
				s.failInDialect(w, r, err)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func asksForServer(r *http.Request) bool {
	looks := r.Method == http.MethodGet || r.Method == http.MethodHead
	return looks && (r.URL.Path == "/" || r.URL.Path == "/api/version")
}

// failInDialect answers with an error in the dialect of the route that was asked for.
func (s *Server) failInDialect(w http.ResponseWriter, r *http.Request, err error) {
	switch path := r.URL.Path; {
	case path == "/v1/messages" || strings.HasPrefix(path, "/v1/messages/") || strings.HasPrefix(path, "/v1/models") && asksAnthropic(r):
		w.Header().Set(anthropicRequestIDHeader, requestID(r.Context()))
		s.failAnthropic(w, r, err)
	case strings.HasPrefix(path, "/v1/"):
		s.failOpenAI(w, r, err)
	default:
		s.fail(w, r, err)
	}
}
