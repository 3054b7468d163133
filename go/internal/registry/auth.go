package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// authLevel is how much was told to get a token: each refusal leads to the next level.
type authLevel int

const (
	_ authLevel = iota
	// authAnonymous asks for a token without saying who we are; public models need no more.
	authAnonymous
	// authSigned signs the request for a token with the user's key.
	authSigned
)

// maxToken bounds what a token server may send.
const maxToken = 1 << 20

func (r *repository) bearer() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.token
}

// granted notes that a token was accepted.
func (r *repository) granted(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted = token
}

// authorize gets a token as the registry's challenge asks for. used is the token that was refused, refused the answer
// that the challenge came with, and the error when nothing is left to try.
func (r *repository) authorize(ctx context.Context, challenges []string, used string, refused *statusError) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.token != used {
		return nil // another request has got a new one meanwhile
	}
	if used != "" && r.accepted == used {
		r.level-- // it was good and has expired
	}
	params, ok := bearerChallenge(challenges)
	if !ok {
		return errdefs.New(errdefs.ErrForbidden, "%s asks for a way to sign in that is not supported; only bearer tokens are: %w", r.base.Host, refused)
	}
	for r.level < authSigned {
		r.level++
		if r.push && r.level == authAnonymous {
			continue // nobody may push without a name
		}
		token, err := r.requestToken(ctx, params, r.level == authSigned)
		if hasStatus(err, http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden) {
			continue
		}
		if err != nil {
			return err
		}
		r.token = token
		return nil
	}
	return errdefs.New(errdefs.ErrForbidden, "%s denies access to %s: a model of this name may not exist, or needs permission; "+
		"the key that stands for you is in ~/.ollama/id_ed25519.pub: %w", r.base.Host, r.path, refused)
}

// bearerChallenge returns the parameters of the first Bearer challenge.
func bearerChallenge(challenges []string) (map[string]string, bool) {
	for _, c := range challenges {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(c), " ")
		if strings.EqualFold(scheme, "Bearer") && len(c) < 8<<10 {
			return authParams(rest), true
		}
	}
	return nil, false
}

// authParams reads key=value and key="value" pairs separated by commas.
func authParams(s string) map[string]string {
	params := map[string]string{}
	for s != "" {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		var value string
		if strings.HasPrefix(rest, `"`) {
			value, rest, _ = strings.Cut(rest[1:], `"`)
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			value, rest, _ = strings.Cut(rest, ",")
		}
		params[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		s = rest
	}
	return params
}

// requestToken asks the registry's own token server.
func (r *repository) requestToken(ctx context.Context, params map[string]string, signed bool) (string, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "%s names no valid address to get a token from", r.base.Host)
	}
	// Whoever signs a request elsewhere hands over a proof of identity that can be used here.
	if !r.isHome(realm) {
		return "", errdefs.New(errdefs.ErrForbidden, "%s wants a token from another host, %.100q, which is refused", r.base.Host, realm.Host)
	}
	query := realm.Query()
	if service := params["service"]; service != "" {
		query.Set("service", service)
	}
	for scope := range strings.FieldsSeq(params["scope"]) {
		query.Add("scope", scope)
	}
	header := http.Header{}
	if signed {
		query.Set("ts", strconv.FormatInt(time.Now().Unix(), 10))
		query.Set("nonce", rand.Text())
	}
	realm.RawQuery = query.Encode()
	if signed {
		signature, err := r.sign(realm)
		if err != nil {
			return "", err
		}
		header.Set("Authorization", signature)
	}
	return r.fetchToken(ctx, realm, header)
}

// sign returns the value of Authorization that proves to have the user's key, in Ollama's form.
func (r *repository) sign(u *url.URL) (string, error) {
	signer, err := loadKey(r.client.params.KeyFile)
	if err != nil {
		return "", err
	}
	empty := sha256.Sum256(nil)
	data := fmt.Sprintf("%s,%s,%s", http.MethodGet, u, base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(empty[:]))))
	signature, err := signer.Sign(rand.Reader, []byte(data))
	if err != nil {
		return "", errdefs.New(errdefs.ErrInternal, "signing failed: %w", err)
	}
	public := base64.StdEncoding.EncodeToString(signer.PublicKey().Marshal())
	return public + ":" + base64.StdEncoding.EncodeToString(signature.Blob), nil
}

// fetchToken does not follow redirects: a token server has no reason for any.
func (r *repository) fetchToken(ctx context.Context, u *url.URL, header http.Header) (string, error) {
	ctx, _, stop := watch(ctx, r.client.params.StallTimeout)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "%s names no valid address to get a token from", r.base.Host)
	}
	req.Header = header
	req.Header.Set("User-Agent", r.client.params.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := r.client.open.RoundTrip(req)
	if err != nil {
		return "", r.failed(ctx, u.Host, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", newStatusError(resp)
	}
	defer resp.Body.Close()
	var body struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&body); err != nil {
		return "", errdefs.New(errdefs.ErrInvalid, "%s sent no valid token", r.base.Host)
	}
	token := cmp.Or(body.Token, body.AccessToken)
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", errdefs.New(errdefs.ErrInvalid, "%s sent no valid token", r.base.Host)
	}
	return token, nil
}
