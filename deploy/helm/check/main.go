// Command check decodes Kubernetes manifests strictly, as an API server does that refuses unknown fields.
//
// An argument is a file with any number of YAML documents, or a folder with a kustomization, which is built first. Every document is
// decoded into the type of its apiVersion and kind. An unknown field, a field that is there twice, a value of the wrong type and an unknown kind are errors.
// What a server checks beyond the types (a port below 65536, a name that exists) is not checked here.
//
// `./dev helm` runs it over the rendered chart, and over the kustomizations.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Makes a decoder that knows the groups of the API which the manifests use.
func strictDecoder() (runtime.Decoder, error) {
	scheme := runtime.NewScheme()
	groups := runtime.NewSchemeBuilder(
		corev1.AddToScheme,
		appsv1.AddToScheme,
		autoscalingv2.AddToScheme,
		policyv1.AddToScheme,
		networkingv1.AddToScheme,
		monitoringv1.AddToScheme,
	)
	if err := groups.AddToScheme(scheme); err != nil {
		return nil, err
	}
	options := json.SerializerOptions{Yaml: true, Strict: true}
	return json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, options), nil
}

// Reads a file, or builds the kustomization in a folder as `kubectl kustomize` does.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return os.ReadFile(path)
	}
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return built.AsYaml()
}

// Decodes every document of a file or of a kustomization. Returns how many there were, and all their errors.
func checkManifests(decoder runtime.Decoder, path string) (int, error) {
	text, err := read(path)
	if err != nil {
		return 0, err
	}
	var problems []error
	count := 0
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return count, fmt.Errorf("%s: %w", path, err)
		}
		if isEmpty(document) {
			continue
		}
		count++
		if _, kind, err := decoder.Decode(document, nil, nil); err != nil {
			problems = append(problems, fmt.Errorf("%s, document %d (%v): %w", path, count, kind, err))
		}
	}
	if count == 0 {
		problems = append(problems, fmt.Errorf("%s: no document", path))
	}
	return count, errors.Join(problems...)
}

// Tells whether a document has nothing but comments and space.
func isEmpty(document []byte) bool {
	for _, line := range bytes.Split(document, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func run(paths []string) error {
	if len(paths) == 0 {
		return errors.New("usage: check FILE|FOLDER...")
	}
	decoder, err := strictDecoder()
	if err != nil {
		return err
	}
	var problems []error
	documents := 0
	for _, path := range paths {
		count, err := checkManifests(decoder, path)
		documents += count
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	fmt.Printf("%d documents of %d sources decode strictly\n", documents, len(paths))
	return nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}
