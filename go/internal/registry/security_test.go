package registry

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/registry/registrytest"
)

// withManifest makes the registry send a manifest of ours.
func withManifest(content []byte, header http.Header) registrytest.Fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			next.ServeHTTP(w, r)
			return
		}
		for k, v := range header {
			w.Header()[k] = v
		}
		w.Write(content)
	}
}

type layerJSON struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	Name      string `json:"name,omitempty"`
}

func manifestOf(t *testing.T, layers ...layerJSON) []byte {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaManifest, "layers": layers})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestHostileManifests(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, _ := published(t, reg)
	const file, weights = "application/vnd.ollmlx.image.file", "application/vnd.ollama.image.model"
	some := "sha256:" + strings.Repeat("a", 64)
	for what, tc := range map[string]struct {
		manifest []byte
		want     string
	}{
		"CVE-2024-37032 traversal":           {manifestOf(t, layerJSON{weights, "sha256:../../../../../../etc/passwd" + strings.Repeat("a", 33), 5, ""}), "a layer with an invalid digest"},
		"CVE-2024-37032 path as digest":      {manifestOf(t, layerJSON{weights, "../../../../../etc/passwd", 5, ""}), "a layer with an invalid digest"},
		"CVE-2026-7020 traversal of tensors": {manifestOf(t, layerJSON{"application/vnd.ollama.image.tensor", "sha256:../x", 5, "a"}), "a layer with an invalid digest"},
		"CVE-2025-1975 short digest":         {manifestOf(t, layerJSON{weights, "sha256:abc", 5, ""}), "a layer with an invalid digest"},
		"CVE-2025-1975 empty digest":         {manifestOf(t, layerJSON{weights, "", 5, ""}), "a layer with an invalid digest"},
		"CVE-2025-1975 no layers":            {[]byte(`{"schemaVersion": 2}`), "has no layers"},
		"CVE-2024-12886 huge":                {bytes.Repeat([]byte(" "), maxManifest+1), "larger than 16 MiB"},
		"negative size":                      {manifestOf(t, layerJSON{weights, some, -5, ""}), "a layer of negative size"},
		"sizes that overflow":                {manifestOf(t, layerJSON{weights, some, 1 << 62, ""}, layerJSON{weights, "sha256:" + strings.Repeat("b", 64), 1 << 62, ""}), "too large"},
		"more than any disk":                 {manifestOf(t, layerJSON{weights, some, 1 << 60, ""}), "not enough disk space"},
		"two sizes":                          {manifestOf(t, layerJSON{weights, blob, testSize, ""}, layerJSON{weights, blob, 5, ""}), "two sizes"},
		"traversal in a file name":           {manifestOf(t, layerJSON{file, blob, testSize, "../config.json"}), "a file with an invalid path"},
		"model code":                         {manifestOf(t, layerJSON{file, blob, testSize, "modeling.py"}), "model code is never executed"},
		"pickle":                             {manifestOf(t, layerJSON{file, blob, testSize, "pytorch_model.bin"}), "pickle files can run code"},
		"two files of one name":              {manifestOf(t, layerJSON{file, blob, testSize, "config.json"}, layerJSON{file, some, 5, "config.json"}), "two files of one name"},
		"wrong size of a blob":               {manifestOf(t, layerJSON{weights, blob, testSize + 1, ""}), "bytes at the registry"},
		"not JSON":                           {[]byte("<html>"), "no valid JSON"},
		"empty":                              {nil, "no valid JSON"},
		"broken configuration":               {bytes.Replace(manifestOf(t, layerJSON{weights, blob, testSize, ""}), []byte(`"layers"`), fmt.Appendf(nil, `"config": {"digest": %q, "size": %d}, "layers"`, blob, testSize), 1), "the model cannot be stored"},
	} {
		t.Run(what, func(t *testing.T) {
			reg.SetFault(withManifest(tc.manifest, nil))
			s := newSide(t)
			_, err := s.pull(name)
			if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), s.dir) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if got := s.names(); got != "" {
				t.Errorf("list shows %s", got)
			}
		})
	}
}

// CVE-2024-12886: what is packed is not unpacked.
func TestGzipBombCVE2024_12886(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	z.Close()
	reg := registrytest.Start(t)
	reg.SetFault(withManifest(bomb.Bytes(), http.Header{"Content-Encoding": {"gzip"}}))
	if _, err := newSide(t).pull(reg.Host + "/org/m"); err == nil || !strings.Contains(err.Error(), `encoded as "gzip", which was not asked for`) {
		t.Errorf("got %v", err)
	}
	for _, r := range reg.Log() {
		if r.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("got %v", r.Header)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestManifestThatIsChangedOnTheWay(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, _ := published(t, reg)
	reg.SetFault(withManifest([]byte(`{}`), http.Header{"Docker-Content-Digest": {"sha256:" + strings.Repeat("0", 64)}}))
	if _, err := newSide(t).pull(name); err == nil || !strings.Contains(err.Error(), "does not match its digest") {
		t.Errorf("got %v", err)
	}
	if n := len(reg.Log()); n != manifestRetries+1 {
		t.Errorf("got %d requests", n)
	}
}

// guard is a registry that wants a token: it asks for one as tokens says, and accepts those that are good.
type guard struct {
	realm string
	good  string
	// tokens answers requests for tokens.
	tokens http.HandlerFunc
}

func (g *guard) fault(w http.ResponseWriter, r *http.Request, next http.Handler) {
	switch {
	case r.URL.Path == "/token":
		g.tokens(w, r)
	case r.Header.Get("Authorization") != "Bearer "+g.good:
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+g.realm+`",service="a, b",scope="repository:org/model:pull,push other"`)
		w.WriteHeader(http.StatusUnauthorized)
	default:
		next.ServeHTTP(w, r)
	}
}

func TestAnonymousToken(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, m := published(t, reg)
	asked := 0
	g := &guard{realm: "http://" + reg.Host + "/token?x=1", good: "t0"}
	g.tokens = func(w http.ResponseWriter, r *http.Request) {
		asked++
		q := r.URL.Query()
		if q.Get("service") != "a, b" || strings.Join(q["scope"], "|") != "repository:org/model:pull,push|other" || q.Get("x") != "1" || r.Header.Get("Authorization") != "" {
			t.Errorf("got %v, %v", q, r.Header)
		}
		// The token expires and is asked for anew.
		g.good = fmt.Sprint("t", asked)
		fmt.Fprintf(w, `{"token": %q}`, g.good)
	}
	reg.SetFault(g.fault)
	s := newSide(t)
	s.mustPull(name)
	s.check(name, m.Digest)
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "home")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key was made without need: %v", err)
	}
}

func TestTokenThatExpires(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, m := published(t, reg)
	g := &guard{realm: "http://" + reg.Host + "/token", good: "first"}
	g.tokens = func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"access_token": %q}`, g.good) }
	manifests := 0
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/blobs/") && manifests == 0 {
			manifests++
			g.good = "second"
		}
		g.fault(w, r, next)
	})
	s := newSide(t, func(p *Params) { p.Streams = 1 })
	s.mustPull(name)
	s.check(name, m.Digest)
}

// Where anonymous users get nothing, the user's key signs, in Ollama's form.
func TestSignedToken(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, m := published(t, reg)
	g := &guard{realm: "http://" + reg.Host + "/token", good: "good"}
	g.tokens = func(w http.ResponseWriter, r *http.Request) {
		public, signature, ok := strings.Cut(r.Header.Get("Authorization"), ":")
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if err := checkSignature(public, signature, "http://"+r.Host+r.URL.String()); err != nil || r.URL.Query().Get("ts") == "" || len(r.URL.Query().Get("nonce")) < 16 {
			t.Errorf("got %v for %s", err, r.URL)
		}
		fmt.Fprint(w, `{"token": "good"}`)
	}
	reg.SetFault(g.fault)
	s := newSide(t)
	s.mustPull(name)
	s.check(name, m.Digest)

	private, err := os.Stat(filepath.Join(s.dir, "home", "id_ed25519"))
	if err != nil || private.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", private, err)
	}
	before, err := os.ReadFile(filepath.Join(s.dir, "home", "id_ed25519.pub"))
	if err != nil || !strings.HasPrefix(string(before), "ssh-ed25519 ") {
		t.Errorf("got %s, %v", before, err)
	}
	// Pushes sign at once, with the key that is there.
	s.mustPush(name)
	after, err := os.ReadFile(filepath.Join(s.dir, "home", "id_ed25519.pub"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key changed: %v", err)
	}
}

func checkSignature(public, signature, url string) error {
	raw, err := base64.StdEncoding.DecodeString(public)
	if err != nil {
		return err
	}
	key, err := ssh.ParsePublicKey(raw)
	if err != nil {
		return err
	}
	blob, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return err
	}
	empty := sha256.Sum256(nil)
	data := "GET," + url + "," + base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(empty[:])))
	return key.Verify([]byte(data), &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: blob})
}

func TestRefusedTokens(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, _ := published(t, reg)
	for what, tc := range map[string]struct {
		tokens http.HandlerFunc
		want   string
	}{
		"nobody":    {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) }, "denies access to org/model"},
		"bad token": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token": "bad"}`) }, "denies access to org/model"},
		"no token":  {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{}`) }, "no valid token"},
		"injection": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"token": "a\r\nX-Evil: 1"}`) }, "no valid token"},
		"CVE-2024-12886 endless": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"token": "`)
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("a"), 1<<16)); err != nil {
					return
				}
			}
		}, "no valid token"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, "302"},
	} {
		t.Run(what, func(t *testing.T) {
			reg.SetFault((&guard{realm: "http://" + reg.Host + "/token", good: "good", tokens: tc.tokens}).fault)
			if _, err := newSide(t).pull(name); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// CVE-2025-51471: a registry must not make us sign, or ask for a token, elsewhere.
func TestForeignRealmCVE2025_51471(t *testing.T) {
	reg := registrytest.Start(t)
	name, _, _ := published(t, reg)
	thief := registrytest.Other(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token": "x"}`) })
	for _, realm := range []string{
		"http://" + thief.Host + "/token",
		"http://" + reg.Host + "@" + thief.Host + "/token",
		"//" + thief.Host, "", "file:///etc/passwd", "https://" + reg.Host + "/token",
	} {
		reg.SetFault((&guard{realm: realm, good: "good"}).fault)
		s := newSide(t)
		if _, err := s.pull(name); err == nil {
			t.Errorf("%s: got no error", realm)
		}
		s.create(name, mlxFiles(), "")
		if _, err := s.push(name); err == nil {
			t.Errorf("%s: got no error of push", realm)
		}
	}
	if len(thief.Log()) > 0 {
		t.Errorf("got %+v", thief.Log())
	}
}

func TestBasicAuthIsNotOffered(t *testing.T) {
	reg := registrytest.Start(t)
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	if _, err := newSide(t).pull(reg.Host + "/org/m"); err == nil || !strings.Contains(err.Error(), "only bearer tokens are") {
		t.Errorf("got %v", err)
	}
}

// Blobs may lie on another host, which gets no credentials.
func TestRedirectToAnotherHost(t *testing.T) {
	reg := registrytest.Start(t)
	name, blob, m := published(t, reg)
	content := weights(1)
	storage := registrytest.Other(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", m.ModifiedAt, bytes.NewReader(content))
	})
	g := &guard{realm: "http://" + reg.Host + "/token", good: "good"}
	g.tokens = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"token": "good"}`) }
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if registrytest.IsBlob(blob)(r) && r.Header.Get("Authorization") == "Bearer good" {
			http.Redirect(w, r, "http://user:secret@"+storage.Host+"/some/place?signature=1", http.StatusTemporaryRedirect)
			return
		}
		g.fault(w, r, next)
	})
	s := newSide(t)
	s.mustPull(name)
	s.check(name, m.Digest)
	if len(storage.Log()) == 0 {
		t.Fatal("the redirect was not followed")
	}
	for _, r := range storage.Log() {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Range") == "" || r.Query != "signature=1" {
			t.Errorf("got %v", r)
		}
	}
}

// Uploads may go to another host, part by part, with the sum of sums that its storage wants.
func TestPushRedirectsUploads(t *testing.T) {
	reg := registrytest.Start(t)
	var stored bytes.Buffer
	storage := registrytest.Other(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || r.Header.Get("Authorization") != "" {
			t.Errorf("got %s %v", r.Method, r.Header)
		}
		io.Copy(&stored, r.Body)
	})
	content := weights(4)
	etag := ""
	reg.SetFault(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Method == http.MethodPatch && r.ContentLength >= 1000:
			w.Header().Set("Docker-Upload-Location", r.URL.String())
			w.Header().Set("Location", "http://"+storage.Host+"/part")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case r.Method == http.MethodPut && r.URL.Query().Get("digest") == digestOf(content):
			etag = r.URL.Query().Get("etag")
			w.WriteHeader(http.StatusCreated)
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.WriteHeader(http.StatusCreated)
		default:
			next.ServeHTTP(w, r)
		}
	})
	s := newSide(t)
	name := reg.Host + "/org/m"
	s.create(name, map[string][]byte{"model.gguf": content}, "")
	s.mustPush(name)
	if !bytes.Equal(stored.Bytes(), content) {
		t.Errorf("got %d bytes, want %d", stored.Len(), len(content))
	}
	if !strings.HasSuffix(etag, fmt.Sprintf("-%d", (testSize+testPart-1)/testPart)) || len(etag) != 35 {
		t.Errorf("got etag %s", etag)
	}
}

// A public registry must not use us to reach machines that only we can reach.
func TestRedirectToPrivateAddress(t *testing.T) {
	inside := registrytest.Other(t, func(http.ResponseWriter, *http.Request) {})
	s := newSide(t)
	public, err := s.client.repository(parse(t, "registry.example/org/m"), Options{}, false)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(inside.Host, ":")
	for _, target := range []string{"http://" + inside.Host, "http://localhost:" + port} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := public.do(t.Context(), call{method: http.MethodGet, url: u}); !errors.Is(err, errPrivate) || !errors.Is(err, errdefs.ErrForbidden) {
			t.Errorf("%s: got %v", target, err)
		}
	}
	if len(inside.Log()) > 0 {
		t.Errorf("got %v", inside.Log())
	}
	if _, err := public.redirected(public.url(), "http://registry.example/x"); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("got %v", err)
	}

	// A registry that is itself on such an address may.
	home := httptest.NewTLSServer(http.RedirectHandler("https://"+inside.Host, http.StatusFound))
	t.Cleanup(home.Close)
	s.client.open.TLSClientConfig = home.Client().Transport.(*http.Transport).TLSClientConfig
	private, err := s.client.repository(parse(t, home.Listener.Addr().String()+"/org/m"), Options{}, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := private.do(t.Context(), call{method: http.MethodGet, url: private.url("x")}); err == nil || errors.Is(err, errPrivate) || !strings.Contains(err.Error(), "does not speak https") {
		t.Errorf("got %v", err)
	}
}

func TestPublicAddresses(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1": true,
		"127.0.0.1": false, "::1": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false,
		"0.0.0.0": false, "::": false, "100.64.0.1": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false,
		"fe80::1": false, "fd00::1": false, "ff02::1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false,
		"64:ff9b::7f00:1": false, "2002:7f00:1::": false, "fe80::1%eth0": false,
	} {
		if got := publicAddr(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v", addr, got)
		}
	}
}

func FuzzAuthParams(f *testing.F) {
	f.Add(`realm="https://x/token",service=y,scope="a,b"`)
	f.Add(`a="`)
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range authParams(s) {
			if !strings.Contains(s, v) {
				t.Errorf("%q: got the value %q", s, v)
			}
		}
	})
}
