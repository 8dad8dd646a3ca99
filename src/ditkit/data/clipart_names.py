"""Captions of Open Clip Art's files, from their names and folders.

The files are called TITLE_AUTHOR_NUMBER, the first two together cut after 24 characters:

    tools/weapons/katana_dudziak_tomek_01.png  ->  katana, weapons, tools

The rules, in order:

- a number at the end (_01, _01r, _r) goes;
- the author goes: words at the end that are a name in AUTHORS, or in a name that was cut the beginning of one; what is left of a
  cut name of one letter goes, too;
- words are parted at _, -, spaces, capitals and between letters and numbers, in lower case; SHORT words of the collection are written out;
- numbers go, and single letters beside them, but for those of stars (star_67pt15step: star with 67 points step 15) and of
  playing cards;
- then come the folders, innermost first, each once.
"""

import re

CUT = 24  # characters of title and author
FEWEST = 2  # letters of the beginning of an author's name
SHORT = {
    "bw": "black and white", "bwh": "", "pt": "", "rectg": "rectangle", "rnd": "round", "fldr": "folder", "img": "image",
    "ppl": "people", "md": "", "usa": "USA", "uk": "UK", "fc": "flowchart",
}  # fmt: skip
SUITS = {"c": "clubs", "d": "diamonds", "h": "hearts", "s": "spades", "jk": "joker"}
RANKS = {"a": "ace", "j": "jack", "q": "queen", "k": "king", "b": "black", "r": "red"}
CARDS = "recreation/games/cards"
AUTHORS = """
    a.j._ashton abiclipart aj aj_ashton aj_as aitor_avila alberto_piccini alejandro_tejada alex_fernandez alex_kuehne
    alexander_d. ali_hussn altum amos andre_marcel. andrea_bianco andreas_nilsson andrei_z andrew_fitzsimon andy_burn
    andy_fitzsimon angelo_gelmi ani_ani anita anonymous anthony_liekens anton_fr anton_yu architetto_francesco_rollandin
    arjen_meijer astrid_graeber aubanel_monnier aubanel b_r_kessels benji_park borja_bravo bradley_whitaker bram_gron
    brice_boyer carlos_katastrofsky cedric_bosdonnat celso_junior celso charles_mccolm chris_hin chris_kempson christian_h.
    christoph_brill christophe clemente costea_bogdan czara1_christophe dan_gerhards dan_gerhrads daniel_steele danny_allen
    darek_adamkiewicz darkon dave_pena dave_reckonin davek david_klan david_wislon davide_pesenti denco dennis_boyd
    dennis_rutjes didier_fabert dirk_struve domas_jo donna_i dudziak_tomek durex einar enrique_meza_c erich_schubert
    erik_postma erwan etienne_bersac ezechiele fabien_omic.ch fabio_olivo fco._andrade fearzip federico felipe_macie
    felipescu filip frank_warttig fredrik_holmqvist frederic_moser francesco_rollandin frolland frouke fudriot_omic.ch
    gabriel_lo_i gabrielle_nowicki ganson geraint_luff gerald_g. ghuul_ghu gino_rivera giuli giuseppe_m glenn_rolland
    goneri_le_bouder graig_ryan_smith guido guillaume_boitel guziec hans_deragon hash_0x89c79d4 havok_redh igor_k ingoenius
    israel_c jaime_sanchez jakob_chaosinfait james_birkett james_kilfiger jamin_ellis janet_theob jarno_vasamaa
    jasper_van_de_grond jasper_v jean-victor_balin jean_victor_balin jean_maurice jean_vitor_balin jeff_simpson jeff_walden
    jesper_zedlitz joel_lehtonen joel_montes_de_oca joerg_rosenbauer joeseph_teed john_rariden jon_campbell jon_phillips
    jonadab_the_unsightly jonathan_dietrich jonvdveen jordan_wiens jorkon josu_alcalde_bas juliane_krug jure_kodzoman
    jurgen_gaeremyn jurgen k_yager karl_bartel kevin_cowan kilian_valkhof konstantin_r. kurt_cagle kurt_nordstrom
    lauris_kaplinski le_toullec leif_lodahl leigh_purdie linda_kim lion_kimbro loic_corwin lorenzo_luengo luca
    lumen_design_studio magnus_erik marcelo_caiafa marcelo_staudt mariusz_k mark_near martin_kozak martin_schmidt
    massimo_aiello mateya matt_todd matthew_gates mauro_olivo mazdac merzok michael_breuer michael_hart michael_ja
    michael_moore michael_tunnicliffe miguel_s_nchez mike_honeychurch mike_powers mikhail_a.medve mimooh mirko_maisch
    mitchell_johnson mo1 mo nae natha nathan_eady nathan_hawke nicolas_clementz nicolas_gagliani nicolas nicu_buculei
    niels_epting nubldoff nurbldoff olivier olivier_boyer omar_abo-na openclipart_c orbu orlando_karam patricia_fidi
    petri_lummemaki peterm phentex philippe_colin philippe ralf_ste ralf_ark.in-berlin.de raphael renante_tomas
    renardjb_on_free.fr revdoug rgolan_sup rick_beton rikva risto_pekkala robert_seitz roberto_u. rodrigo_t
    rollandin_architetto rollandin_francesco roman_bertle romus ron_golan rory_mccann ross_merrigan rpswb ruairi_hann
    ruud_steltenpool ryan_phil s_rgio_luiz_ara_jo saint saurabh_nanda sergio_luiz_araujo seth_yastrov shandy_brown sherrera
    snuatautisticido stefan_alfredsson stefan_bazelkov stefan_graubner stefan_illner stepan_kli stuart_moore susan_park
    t._eitel tanguy_jacq tatiana_coutinho terry tess_brady teudimundo the_mad_processor the_structorr theerud_law
    timothy_whit tobias_jakobs toh_yen_cheng tom_hung tom_kra tom_webb tristan_le_toullec uliphant utrescu
    valessio_soares_de vermin vikingdread vladimir_hernandez wilc william_page wolfram_es yemu yogesh_kanitkar yves_guillou
    zazou
""".split()

STAR = re.compile(r"star_(\d+)pt(\d+)step")

_KNOWN = frozenset(AUTHORS)


def caption(path: str) -> str:
    """The caption of a picture at this path, relative to the folder of subjects. The rules are this module's docstring."""
    *folders, _ = path.split("/")
    parts = [title(path), *(plain(folder) for folder in reversed(folders))]
    return ", ".join(dict.fromkeys(part for part in parts if part))


def title(path: str) -> str:
    """What the file's name says is shown; "" where no words are left."""
    name = path.rpartition("/")[2].removesuffix(".png")
    if match := STAR.fullmatch(name):
        return f"star with {int(match[1])} points step {int(match[2])}"
    match = re.fullmatch(r"([a-z]+)_(c|d|h|s|jk)_([a-z]|\d+)", name)
    if match is None or not path.startswith(CARDS):
        return plain(without_author(name))
    style, suit, rank = match[1], SUITS[match[2]], RANKS.get(match[3], match[3])
    return f"{style} {rank} joker" if suit == "joker" else f"{style} {rank} of {suit}"


def without_author(name: str) -> str:
    """A file's name without the number and the author at its end."""
    name = re.sub(r"_*(_\d+[a-z]?|_[rs]|_)$", "", name)
    cut = len(name) >= CUT - 1  # one less where it ended with a blank
    words = name.split("_")
    for first in range(len(words)):
        rest = "_".join(words[first:]).lower().strip("_")
        begun = cut and len(rest) >= FEWEST and any(author.startswith(rest) for author in AUTHORS)
        if begun or rest.rstrip("0123456789") in _KNOWN:
            return "_".join(words[:first])
    return "_".join(words[:-1]) if cut and len(words[-1]) == 1 else name


def plain(name: str) -> str:
    """The words of a name in lower case, without numbers and the single letters beside them."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    name = re.sub(r"(?<![^\W\d_])[a-zA-Z]?\d+(?:[a-zA-Z](?![^\W\d_]))?", " ", name)
    words = (SHORT.get(word.lower(), word.lower()) for word in re.findall(r"[^\W\d_]+", name))
    return " ".join(word for word in words if word)
