// Package modelname turns what users write for a model into one canonical name.
//
// Every entry point (HTTP routes, command line, Modelfile, store) parses names here and nowhere else, so that all forms
// of a name lead to the same model everywhere. The invariant: two strings name the same model exactly if the Key of
// what Parse makes of them is equal. A name says where a model comes from and nothing about what it holds; its format
// is known from its files.
package modelname

import (
	"strings"

	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const (
	// RegistryHost is the host of names that give none: Ollama's registry.
	RegistryHost = "registry.ollama.ai"
	// HubHost is the one spelling of Hugging Face's host.
	HubHost = "hf.co"
	// LibraryNamespace is the namespace of names that give none.
	LibraryNamespace = "library"
	// DefaultTag is the tag of names that give none.
	DefaultTag = "latest"
)

// hubHosts are the hosts that serve the Hugging Face hub; they all become HubHost.
var hubHosts = []string{HubHost, "huggingface.co", "www.huggingface.co"}

// mlxOrgs are Hugging Face organisations that publish nothing but MLX models. A name without a host in one of these
// namespaces belongs to the hub, because Ollama's registry has no such namespace. Their spelling here is the hub's.
var mlxOrgs = []string{"mlx-community"}

// Parse returns the canonical, fully qualified form of s, or an error of kind ErrInvalid.
//
// The form is [scheme://][host/][namespace/]model[:tag] with a scheme of http or https. Absent parts get their
// defaults; the host is lower-cased and Hugging Face's hosts become "hf.co"; a namespace of mlxOrgs without a host is on
// the hub. All other parts keep the case in which they were written, because that is how a new model will be shown.
// Nothing is trimmed: a space is an error, as are digests, "..", empty parts and more parts than these.
//
// On the hub a tag is a branch, tag or commit of the repository, or a quantization of GGUF files, and may be written as
// namespace/model@revision, which is a name of the hub also without a host; @main is the default. The address of a
// page of the hub, https://huggingface.co/namespace/model with or without /tree/revision, is the same name.
//
// The scheme only says how to reach a registry. It is kept in ProtocolScheme and is no part of the identity.
func Parse(s string) (model.Name, error) {
	if lower := strings.ToLower(s); strings.HasSuffix(lower, ":local:cloud") || strings.HasSuffix(lower, ":cloud:local") {
		return model.Name{}, errdefs.New(errdefs.ErrInvalid, "use either :local or :cloud, not both")
	}
	s, revision, ok := cutRevision(hubPage(s))
	if !ok {
		return model.Name{}, invalid()
	}
	n := model.ParseNameBare(s)

	n.ProtocolScheme = strings.ToLower(n.ProtocolScheme)
	if strings.Contains(s, "://") && n.ProtocolScheme != "https" && n.ProtocolScheme != "http" {
		return model.Name{}, invalid()
	}

	n.Host = CanonicalHost(n.Host)
	if org, ok := mlxOrg(n.Namespace); ok && (n.Host == "" || n.Host == HubHost) {
		n.Host, n.Namespace = HubHost, org
	}
	if revision != "" {
		if n.Host == "" && n.Namespace != "" {
			n.Host = HubHost
		}
		if n.Host != HubHost || n.Tag != "" {
			return model.Name{}, invalid()
		}
		if revision != mainBranch {
			n.Tag = revision
		}
	}

	n = model.Merge(n, model.DefaultName())
	if !Valid(n) {
		return model.Name{}, invalid()
	}
	return n, nil
}

// mainBranch is what the hub calls the branch that names without a revision mean.
const mainBranch = "main"

// hubPage returns the address of a page of the hub in the form namespace/model@revision, and anything else as it is.
func hubPage(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	host, path, ok := strings.Cut(rest, "/")
	if !ok || CanonicalHost(host) != HubHost {
		return s
	}
	parts := strings.Split(strings.TrimSuffix(path, "/"), "/")
	if len(parts) != 4 || parts[2] != "tree" || strings.ContainsAny(path, "@:") {
		if len(parts) != 2 {
			return s
		}
		return scheme + "://" + host + "/" + strings.Join(parts, "/")
	}
	return scheme + "://" + host + "/" + parts[0] + "/" + parts[1] + "@" + parts[3]
}

// cutRevision splits model@revision; ok is false if there is an @ and no revision that a tag could hold.
func cutRevision(s string) (name, revision string, ok bool) {
	name, revision, found := strings.Cut(s, "@")
	if !found {
		return s, "", true
	}
	return name, revision, model.Name{Host: HubHost, Namespace: "n", Model: "m", Tag: revision}.IsFullyQualified()
}

// OnHub returns the name on the hub that n may mean as well: that of org/model without a host, which is a name of
// Ollama's registry first. ok is false if n cannot mean one.
func OnHub(n model.Name) (hub model.Name, ok bool) {
	_, mlx := mlxOrg(n.Namespace) // has its host only if that was given
	if n.Host != RegistryHost || n.Namespace == LibraryNamespace || mlx {
		return model.Name{}, false
	}
	n.Host = HubHost
	return n, true
}

// Valid reports whether n is fully qualified and safe to build a relative path from.
func Valid(n model.Name) bool {
	// The parts' own syntax excludes path separators and a leading dot. Two dots inside a part are harmless to a path,
	// but no registry has them, and a rule without exceptions is easier to trust.
	return n.IsFullyQualified() && !strings.Contains(n.String(), "..")
}

// CanonicalHost lower-cases a host and gives Hugging Face's hosts their one spelling.
func CanonicalHost(host string) string {
	host = strings.ToLower(host)
	for _, h := range hubHosts {
		if host == h {
			return HubHost
		}
	}
	return host
}

// HostSpellings returns all hosts that CanonicalHost turns into the canonical host given, itself first. Other programs
// may have stored models under any of them.
func HostSpellings(host string) []string {
	if host == HubHost {
		return hubHosts
	}
	return []string{host}
}

// Display returns the shortest form that Parse turns back into n, with the tag: what users read and type.
func Display(n model.Name) string {
	_, mlx := mlxOrg(n.Namespace)
	switch {
	case mlx && strings.EqualFold(n.Host, HubHost):
		return n.Namespace + "/" + n.Model + ":" + n.Tag
	case mlx:
		// Without its host this would become a name on the hub.
		return n.Host + "/" + n.Namespace + "/" + n.Model + ":" + n.Tag
	default:
		return n.DisplayShortest()
	}
}

// Key returns the identity of n for use in maps: names that differ in case or scheme have the same key.
func Key(n model.Name) string {
	return strings.ToLower(n.String())
}

func mlxOrg(namespace string) (string, bool) {
	for _, org := range mlxOrgs {
		if strings.EqualFold(namespace, org) {
			return org, true
		}
	}
	return "", false
}

func invalid() error {
	// The text is Ollama's; clients show and compare it.
	return errdefs.New(errdefs.ErrInvalid, "invalid model name")
}
